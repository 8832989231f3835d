"""Items on networks and their training."""

from collections.abc import Iterable

from tasks.claim.answer import Answer
from tasks.comparison.document import Document, ExperimentRecord
from tasks.reporting.ensembles import on_ensembles
from tasks.reporting.findings import on_choice, on_trainings
from tasks.reporting.settings import NETWORKS, settings, start_words, versions
from tasks.reporting.words import SELECTION_WORDS, formatted, listed, networks_word, section_words

PAPERS = {
    "unet": "Ronneberger et al. 2015, doi 10.1007/978-3-319-24574-4_28",
    "residual_unet": "with the blocks of He et al. 2016, doi 10.1109/CVPR.2016.90",
    "attention_unet": "Oktay et al. 2018, arXiv 1804.03999",
    "unet_plus_plus": "Zhou et al. 2018, doi 10.1007/978-3-030-00889-5_1",
}


def networks(document: Document) -> Answer:
    sizes = {
        kind: _parameters(document, kind)
        for kind in _distinct(e.plan["network"] for e in document.experiments)
    }
    named = "; ".join(
        f"{NETWORKS.get(kind, kind)}, {counts} parameters" + (f" ({PAPERS[kind]})" if kind in PAPERS else "")
        for kind, counts in sizes.items()
    )
    targets = _distinct(listed(e.plan["targets"]) for e in document.experiments)
    return Answer(
        f"Convolutional networks: {named}. Input: one grey image. Output: for each pixel, a probability of "
        f"{listed(targets, 'or')}. Convolutions of 3 × 3 with batch normalisation and ReLU, 2 × 2 max "
        "pooling, and transposed convolutions; models/networks.py defines every layer. Item 25 or Table 2 "
        "has width and depth."
    )


def _parameters(document: Document, kind: str) -> str:
    counts = sorted(
        {t.parameters for e in document.experiments if e.plan["network"] == kind for t in e.trainings}
    )
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def software(document: Document) -> Answer:
    return Answer(f"{', '.join(versions(document))}.")


def initialisation(document: Document) -> Answer:
    started = [e for e in document.experiments if e.plan.get("start_from")]
    random = [e for e in document.experiments if e not in started]
    said = [f"{e.name}: the weights of {start_words(e.plan)}." for e in started]
    if random:
        names = "All networks" if not started else listed([e.name for e in random])
        said.append(
            f"{names}: random weights, by the rules of PyTorch for each layer, from {_seeds(random)}. They "
            "were not pretrained."
        )
    missing = "On which images the weights were trained that were used as a start." if started else ""
    return Answer(" ".join(said), missing)


def _seeds(experiments: list[ExperimentRecord]) -> str:
    seeds = sorted({training.seed for e in experiments for training in e.trainings})
    return f"seed{'s' if len(seeds) > 1 else ''} {listed(list(map(str, seeds)))}"


def training(document: Document) -> Answer:
    differing, common = settings(document.experiments)
    same = "; ".join(f"{label.lower()}: {value}" for label, value in common.items())
    faulty = list(on_trainings(document))
    problems = (
        f"Problems in training, which index.html describes: {listed(faulty)}."
        if faulty
        else "No training had a problem."
    )
    return Answer(
        f"The same for all experiments: {same}. In Table 2: {listed(list(map(str.lower, differing)))}. "
        f"index.html shows the losses of all epochs. {problems}"
    )


def choice(document: Document) -> Answer:
    rules = _distinct(SELECTION_WORDS[e.plan.get("selection", "all")] for e in document.experiments)
    said = [
        f"Of each training, the epoch with the best {listed(rules, 'or')} on Val is kept; Table 2 names it."
    ]
    for section in document.predicted:
        found = section.choice
        assert found
        said.append(
            f"For {section_words(document, section)}, {found.chosen} is chosen. "
            f"{on_choice(document, section)} "
            f"{_operating_point(document.experiment(found.chosen), section.target)}"
        )
    return Answer(f"{' '.join(said)} The Test split chooses nothing.")


def _operating_point(experiment: ExperimentRecord, target: str) -> str:
    """From which probabilities on an experiment's networks mark pixels."""
    thresholds = _by_network([formatted(t.thresholds[target], 2) for t in experiment.trainings], experiment)
    least = _by_network([formatted(t.presence[target], 4) for t in experiment.trainings], experiment)
    present = any(t.presence[target] for t in experiment.trainings)
    images = f", in images whose mean probability is at least {least}" if present else ""
    return f"It marks pixels with a probability of at least {thresholds}{images}."


def _by_network(values: list[str], experiment: ExperimentRecord) -> str:
    """One value, or all of them by seed or by fold."""
    by = networks_word(experiment).removesuffix("s")
    return values[0] if len(set(values)) == 1 else f"{listed(values)} (by {by})"


def ensembles(document: Document) -> Answer:
    if not document.ensembles:
        return Answer(
            inapplicable="No experiment combines several networks. Scores of several seeds are means."
        )
    members = "; ".join(
        f"{found.experiment}: {found.networks} networks that differ in "
        + ("their fold and seed" if document.experiment(found.experiment).folds > 1 else "the seed")
        for found in document.ensembles
    )
    return Answer(f"The average of the probabilities of {members}. {' '.join(on_ensembles(document))}")
