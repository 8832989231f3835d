"""Items on the reference standard: what the masks are, and who drew them."""

from tasks.claim.answer import Answer
from tasks.comparison.document import Document
from tasks.reporting.words import listed

DRAWN = "The masks of synthetic images are exact: the software draws them together with the images."
TAHIR = "Tahir et al. 2021, doi 10.1016/j.compbiomed.2021.105002"
DEGERLI = "Degerli et al. 2021, doi 10.1007/s13755-021-00146-8"
#: What the publishers of COVID-QU-Ex state about each kind of mask.
PUBLISHED = {
    "lung": f"Lung masks: made by people and networks together, in turns ({TAHIR}).",
    "infection": f"Infection masks: made by a network and corrected by doctors ({DEGERLI}). Controls have "
    "empty masks.",
}


def definition(document: Document) -> Answer:
    kinds = document.dataset.masks
    if document.phantoms:
        return Answer(f"Masks of {listed(kinds)}. {DRAWN}")
    if document.published:
        return Answer(
            " ".join(PUBLISHED[kind] for kind in kinds if kind in PUBLISHED),
            "The rules by which a pixel counts as infected or as lung, and how the class of an image was "
            "established, from these papers.",
        )
    return Answer(
        missing=f"How the masks of {listed(kinds)} and the classes were established. The files do not say."
    )


def rationale(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=DRAWN)
    return Answer(missing="Why masks on X-rays are the reference, and not, for example, CT.")


def annotators(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=DRAWN)
    missing = "The number, the specialty and the experience of the annotators, and their instructions."
    if document.published and "infection" in document.dataset.masks:
        return Answer(f"Doctors corrected the infection masks ({DEGERLI}).", missing)
    return Answer(missing=missing)


def test_annotation(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=DRAWN)
    return Answer(
        missing="How the Test images were annotated, with which software, and whether the annotators saw "
        "what a network predicts. The masks of all splits are used as they are in the source."
    )


def variability(document: Document) -> Answer:
    if document.phantoms:
        return Answer(inapplicable=DRAWN)
    return Answer(
        missing="How far two annotators agree, or one with itself. The dataset has one mask of each kind for "
        "an image."
    )
