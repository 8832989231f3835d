"""Items on the data: where they come from, what was done with them, and how they were split."""

from collections import defaultdict
from collections.abc import Iterator

from tasks.claim.answer import Answer
from tasks.common.raw import CLASSES, SPLITS
from tasks.comparison.document import Document, ExperimentRecord
from tasks.reporting.dataset import ALL, on_leaks
from tasks.reporting.limitations import on_patients
from tasks.reporting.words import IMAGE_SET_WORDS, listed, percentage, section_words

COVID_QU_EX = (
    "COVID-QU-Ex (Tahir et al. 2021, doi 10.1016/j.compbiomed.2021.105002; Kaggle, doi "
    "10.34740/kaggle/dsv/3122958)"
)
SYNTHETIC = "The images are synthetic."


def sources(document: Document) -> Answer:
    images = sum(document.dataset.images.values())
    whole = (
        f"{images:,} usable images, read from `{document.source}`. SHA-256 of the table of these "
        f"images: `{document.dataset.fingerprint}`."
    )
    if document.phantoms:
        return Answer(f"{SYNTHETIC} They were drawn by this software, and show no patient: {whole}")
    if document.published:
        return Answer(f"{COVID_QU_EX}: {whole}")
    return Answer(
        whole, "The institutions and dates that the images come from, and a link if they are public."
    )


def selection(document: Document) -> Answer:
    dataset = document.dataset
    dropped = dataset.audit["dropped"]
    duplicates = (
        f"{dropped:,} were dropped from training and validation" if dataset.drops_duplicates else "kept"
    )
    rule = (
        "Of the images in the source, those were used that can be read, and whose masks can be read and "
        f"have the image's size. {_unusable(document)} Duplicates of images of other splits: {duplicates}."
    )
    if document.phantoms:
        return Answer(rule)
    criteria = "The criteria by which patients and images came into the dataset"
    return Answer(rule, f"{criteria}, from its publishers' paper." if document.published else f"{criteria}.")


def _unusable(document: Document) -> str:
    found, usable = _counts(document)
    return f"Excluded as unusable: {found - usable:,} of {found:,} images."


def _counts(document: Document, split: str = ALL, image_class: str = ALL) -> tuple[int, int]:
    """Number of images in the halves that experiments use, and how many of them are usable."""
    halves = {e.half for e in document.experiments}
    counts = [
        count
        for count in document.dataset.counts
        if count.half in halves and (count.split, count.image_class) == (split, image_class)
    ]
    return sum(count.images for count in counts), sum(count.usable for count in counts)


def preprocessing(document: Document) -> Answer:
    sizes = sorted({e.plan["image_size"] for e in document.experiments})
    to = listed([f"{size} × {size}" for size in sizes], "or")
    return Answer(
        f"Images are grey values of 8 bits. They are resized bilinearly to {to} pixels, whatever their "
        "aspect ratio, and divided by 255; there is no windowing and no other normalisation. Masks are "
        "resized by area averaging. Scores are computed at the size of the original mask."
    )


def subsets(document: Document) -> Answer:
    halves = sorted({e.half for e in document.experiments})
    half = f"Trained and tested on the {listed(halves)} half of the dataset. " if document.published else ""
    classes: dict[str, list[str]] = defaultdict(list)
    for e in document.experiments:
        lungs = str(e.plan["images"]).partition("lungs/")[2]
        part = f"only the lungs that {lungs} predicts" if lungs else "whole images"
        classes[f"{listed(e.plan['train_classes'])}, {part}"].append(e.name)
    trained = "; ".join(f"{of} ({listed(names)})" for of, names in classes.items())
    return Answer(f"{half}Classes and parts of the training images: {trained}. All classes are tested.")


def identifiers(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=SYNTHETIC)
    if document.published:
        return Answer(
            "The published files hold no patient identifiers.",
            "How the publishers removed them, from their paper.",
        )
    return Answer(missing="How identifiers were removed, from names of files too.")


def missing_data(document: Document) -> Answer:
    said = (
        f"{_unusable(document)} None was repaired, and no pixel and no class was imputed. The reasons are in "
        "index.html under “Dataset audit”."
    )
    if document.phantoms or document.published:
        return Answer(said)
    return Answer(
        f"{said} A control without an infection mask counts as one with an empty mask.",
        "How many controls had no mask, and which clinical data are missing.",
    )


def acquisition(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=f"{SYNTHETIC} No image was acquired.")
    return Answer(
        missing="Manufacturers, views (posteroanterior or anteroposterior), exposure, and size of a pixel. "
        "The files do not say."
    )


def assignment(document: Document) -> Answer:
    found = {split: _counts(document, split)[1] for split in SPLITS}
    total = sum(found.values())
    shares = listed([f"{split} {images:,} ({percentage(images / total)})" for split, images in found.items()])
    said = f"{shares} of the usable images. Table 1 has them by class."
    if document.phantoms:
        return Answer(f"The splits are those of the generator, with a fixed number of each class: {said}")
    if document.published:
        return Answer(f"The splits are those of the publishers: {said}")
    return Answer(said, "How images were assigned to splits: `data.layout` in params.yaml says it.")


def disjointness(document: Document) -> Answer:
    if document.phantoms:
        return Answer("By image. Each image is drawn independently of all others.")
    on_images = on_leaks(document.dataset) + (
        " No group and no such pair is split between the folds of a cross-validation."
        if document.cross_validations
        else ""
    )
    groups = document.dataset.groups
    if groups is None:
        alone = "There are no patient identifiers, so images of one patient may be in different splits."
        return Answer(f"By image. {alone} {on_images}")
    level = "By image" if groups.split else "By group"
    return Answer(f"{level}. {on_patients(document)} {on_images}")


def sample_size(document: Document) -> Answer:
    section = document.predicted[0]
    assert section.choice
    row = section.main.row(section.choice.chosen)
    bounds = row.scores["iou"].interval
    width = (
        f"; the 95% interval of the IoU of {row.name} is {bounds.high - bounds.low:.3f} wide"
        if bounds
        else ""
    )
    whence = (
        " The splits are those of the publishers, so no number was calculated." if document.published else ""
    )
    return Answer(
        f"{row.images:,} {IMAGE_SET_WORDS[section.main.name]}{width}.{whence}",
        "A justification of the number of Test images.",
    )


def included(document: Document) -> Answer:
    dataset = document.dataset
    trained: dict[str, list[str]] = defaultdict(list)
    for e in document.experiments:
        trained[_used(e)].append(e.name)
    used = "; ".join(f"{images} ({listed(names)})" for images, names in trained.items())
    tested = "; ".join(f"{images:,} images ({target})" for target, images in _tested(document))
    groups = f"Groups, such as patients: {dataset.groups.number:,}. " if dataset.groups else ""
    said = (
        f"{groups}{_unusable(document)} Dropped from training and validation as duplicates: "
        f"{dataset.audit['dropped']:,}. Used for training and validation: {used}. Tested on: {tested}. Table "
        "1 has the usable images."
    )
    if document.phantoms:
        return Answer(said)
    unknown = "How many patients the groups are" if dataset.groups else "The number of patients"
    return Answer(said, f"{unknown}, and a diagram of inclusion and exclusion.")


def _used(e: ExperimentRecord) -> str:
    train, val = e.first.train_images, e.first.val_images
    if e.folds > 1:
        return f"{train + val:,} Train and Val images in {e.folds} folds"
    return f"{train:,} Train and {val:,} Val images"


def _tested(document: Document) -> Iterator[tuple[str, int]]:
    for section in document.predicted:
        largest = section.image_set("all") or section.main
        yield section_words(document, section), largest.rows[0].images


def characteristics(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=f"{SYNTHETIC} There are no patients.")
    totals = {name: _counts(document, image_class=name)[1] for name in CLASSES}
    classes = listed([f"{images:,} {name}" for name, images in totals.items()])
    return Answer(
        f"Only the class is known: {classes} images. Table 1 has them by split.",
        "Age, sex, severity, and comorbidities of the patients in each split, and sources of bias among "
        "them.",
    )
