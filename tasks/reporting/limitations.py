"""What the scores do not say, from facts about the dataset and the run."""

from tasks.comparison.document import Document

RESEARCH_USE = "Research use only; not a medical device."


def limitations(document: Document) -> list[str]:
    """One sentence for each limitation that applies to this run."""
    if document.phantoms:
        return ["All images are synthetic. The scores support no conclusion about patients."]
    audit = document.dataset.audit
    near = audit["exact_pairs_across_splits"] + audit["near_pairs_across_splits"]
    return [
        "The Test images come from the same sources as the training images. No network was tested on images "
        "of another hospital, another scanner or another time.",
        "There are no patient identifiers. Images of one patient may be in different splits and count as "
        "independent, so all intervals are too narrow by an unknown amount. "
        + (
            f"The audit found {near} pair{'s' if near > 1 else ''} of identical or nearly identical images "
            "across splits."
            if near
            else "The audit found no identical or nearly identical images across splits."
        ),
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
        *_mirrored(document),
        *_two_steps(document),
        "The Test split has been looked at in earlier versions of this project and in both reports. Epochs, "
        "thresholds and the recommended network are chosen on the Val split alone.",
    ]


def _mirrored(document: Document) -> list[str]:
    mirrored = any(
        e.plan.get("augment", {}).get("flip") or e.prediction.get("flip_average")
        for e in document.experiments
    )
    if not mirrored:
        return []
    return [
        "Some networks see mirrored images, in which the heart is on the right. This is deliberate: it "
        "doubles the variety of the training images, and the sides play no role in the masks. Nobody tested "
        "whether it harms patients with a heart on the right."
    ]


def _two_steps(document: Document) -> list[str]:
    if not any(str(e.plan.get("images", "")).startswith("lungs/") for e in document.experiments):
        return []
    return [
        "In two steps, the second network learns from lungs that the first network predicts on its own "
        "training images, where they are more accurate than on new ones. All seeds of the second network use "
        "the lungs of the first seed of the first network, so their spread lacks that of the first step."
    ]
