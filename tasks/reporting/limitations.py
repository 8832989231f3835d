"""What the scores do not say, from facts about the dataset and the run."""

from collections.abc import Collection, Sequence

from tasks.comparison.document import Document, ExperimentRecord, ImageGroups
from tasks.reporting.words import listed

RESEARCH_USE = "Research use only; not a medical device."


def limitations(document: Document, names: Collection[str] | None = None) -> list[str]:
    """One sentence for each limitation that applies to this run, or to these experiments alone."""
    if document.phantoms:
        return ["All images are synthetic. The scores support no conclusion about patients."]
    *found, on_test = _of_covid_qu_ex(document) if document.published else _of_own_images(document)
    experiments = [e for e in document.experiments if names is None or e.name in names]
    return [
        *found,
        *_mirrored(experiments),
        *_cross_validated(experiments),
        *_two_steps(experiments),
        *_fine_tuned(experiments),
        on_test,
    ]


def _of_covid_qu_ex(document: Document) -> list[str]:
    return [
        _other_hospitals(document, "sources", ""),
        _without_patients(document),
        "COVID-19 images and controls were collected by different institutions. A network may recognise the "
        "institution instead of the disease, which makes false positive rates look better than they would be "
        "within one hospital.",
        "The infection masks were made by a network and corrected by doctors (Degerli et al. 2021, "
        "doi 10.1007/s13755-021-00146-8). How far two doctors would agree is unknown, so the highest score "
        "that is possible is unknown too.",
        "Control images of patients with other lung infections have empty masks: the masks mark COVID-19 "
        "infection, not any abnormality.",
        "The images have 256×256 pixels of 8 bits and no spacing. Distances are in pixels, and fine detail "
        "of the original X-rays is lost.",
        "The Test split has been looked at in earlier versions of this project and in both reports. Epochs, "
        "thresholds and the recommended network are chosen on the Val split alone.",
    ]


def _of_own_images(document: Document) -> list[str]:
    """What holds for any dataset, without knowing where it comes from."""
    return [
        _other_hospitals(document, "source", ", unless the splits were made so"),
        on_patients(document),
        "If the classes were collected by different institutions, a network may recognise the institution "
        "instead of the disease.",
        "Who drew the reference masks, and how far two readers would agree, is not part of the data. Scores "
        "compare networks with these masks, not with the truth.",
        "The images have 8 bits and no spacing. Distances are in pixels.",
        "Each look at the Test scores that changes the settings makes them less reliable. Epochs, thresholds "
        "and the recommended network are chosen on the Val split alone.",
    ]


def _other_hospitals(document: Document, sources: str, exception: str) -> str:
    same = f"The Test images come from the same {sources} as the training images."
    if not document.external:
        return (
            f"{same} No network was tested on images of another hospital, another scanner or another "
            f"time{exception}."
        )
    names = listed([dataset.name for dataset in document.external])
    return (
        f"{same} Scores on {names} say how networks do on these images. Other hospitals may differ more, and "
        "readers who draw masks by other rules lower a score too."
    )


def on_patients(document: Document) -> str:
    """Whether images of one patient may be in several splits, and what that means for the intervals."""
    groups = document.dataset.groups
    return _with_patients(groups) if groups else _without_patients(document)


def _without_patients(document: Document) -> str:
    audit = document.dataset.audit
    near = audit["exact_pairs_across_splits"] + audit["near_pairs_across_splits"]
    return (
        "There are no patient identifiers. Images of one patient may be in different splits and count as "
        "independent, so all intervals are too narrow by an unknown amount. "
    ) + (
        f"The audit found {near} pair{'s' if near > 1 else ''} of identical or nearly identical images "
        "across splits."
        if near
        else "The audit found no identical or nearly identical images across splits."
    )


def _with_patients(groups: ImageGroups) -> str:
    independent = (
        "Images of one group count as independent, so intervals are too narrow if groups have several images."
    )
    if groups.split:
        return (
            f"{groups.split:,} of {groups.number:,} groups, such as patients, have images in several splits. "
            f"Scores on these may be better than on new patients. {independent}"
        )
    return f"All images of a group, such as a patient, are in one split. {independent}"


def _mirrored(experiments: Sequence[ExperimentRecord]) -> list[str]:
    mirrored = any(
        e.plan.get("augment", {}).get("flip") or e.prediction.get("flip_average") for e in experiments
    )
    if not mirrored:
        return []
    return [
        "Some networks see mirrored images, in which the heart is on the right. This is deliberate: it "
        "doubles the variety of the training images, and the sides play no role in the masks. Nobody tested "
        "whether it harms patients with a heart on the right."
    ]


def _fine_tuned(experiments: Sequence[ExperimentRecord]) -> list[str]:
    names = [e.name for e in experiments if e.plan.get("start_from")]
    if not names:
        return []
    return [
        f"{listed(names)} started from trained weights. If the images on which these were trained include "
        "Test images or other images of the same patients, the scores are too good."
    ]


def _cross_validated(experiments: Sequence[ExperimentRecord]) -> list[str]:
    if not any(e.folds > 1 for e in experiments):
        return []
    return [
        "In a cross-validation, the fold on which a network is scored also chose its epoch and thresholds, "
        "as Val does otherwise, so scores out of fold are a little too good. The networks of different folds "
        "share most of their training images, so they differ less than networks trained on new images would."
    ]


def _two_steps(experiments: Sequence[ExperimentRecord]) -> list[str]:
    if not any(str(e.plan.get("images", "")).startswith("lungs/") for e in experiments):
        return []
    return [
        "In two steps, the second network learns from lungs that the first network predicts on its own "
        "training images, where they are more accurate than on new ones. All seeds of the second network use "
        "the lungs of the first seed of the first network, so their spread lacks that of the first step."
    ]
