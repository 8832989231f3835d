"""Builds the document, with one section per half and target."""

from collections.abc import Sequence

from tasks.comparison.calibration import infected_share, reliability
from tasks.comparison.cases import class_cases, figures, spreads
from tasks.comparison.consistency import consistency
from tasks.comparison.dataset import dataset
from tasks.comparison.differences import image_set_differences, steps
from tasks.comparison.document import SCHEMA_VERSION, Document, ImageSet, Report2, Section
from tasks.comparison.findings import against_baselines, best_baselines, lead
from tasks.comparison.inputs import Inputs, Scored, has_masks
from tasks.comparison.published import PUBLISHED, REPORT_1, REPORT_2
from tasks.comparison.scores import markings, score_rows
from tasks.comparison.trainings import BOTH, experiment, report_2_scores


def compare_all(inputs: Inputs, positions: Sequence[int]) -> Document:
    """Compute the document. `positions` select the Test images to show as figures."""
    scored = inputs.scored()
    sections = tuple(_section(inputs, one, positions, opens) for one, opens in _with_openings(scored))
    return Document(
        schema_version=SCHEMA_VERSION,
        source=inputs.source,
        phantoms=inputs.phantoms,
        dataset=dataset(inputs),
        experiments=tuple(experiment(e) for e in inputs.experiments),
        sections=sections,
        report_2=_report_2(inputs, scored),
        consistency=consistency(sections, inputs.phantoms),
    )


def _with_openings(scored: Sequence[Scored]) -> list[tuple[Scored, bool]]:
    """Each item with whether it is the first of its half."""
    return [(one, i == 0 or scored[i - 1].half != one.half) for i, one in enumerate(scored)]


def _section(inputs: Inputs, scored: Scored, positions: Sequence[int], opens: bool) -> Section:
    masks = has_masks(scored.half, scored.target)
    return Section(
        half=scored.half,
        target=scored.target,
        has_masks=masks,
        experiments=tuple(e.name for e in scored.experiments),
        image_sets=tuple(_image_set(scored, name) for name in scored.image_sets),
        markings=markings(scored),
        printed=REPORT_1 if scored.target == "infection" else (),
        published=() if inputs.phantoms else PUBLISHED.get(scored.target, ()),
        reliability=reliability(scored),
        infected_share=infected_share(scored),
        steps=steps(scored),
        spreads=spreads(scored) if masks else (),
        figures=figures(inputs, scored, positions) if opens else None,
    )


def _image_set(scored: Scored, name: str) -> ImageSet:
    differences = image_set_differences(scored, name)
    return ImageSet(
        name=name,
        rows=score_rows(scored, name),
        differences=differences,
        lead=lead([e.name for e in scored.ranking(name)], differences),
        against_baselines=against_baselines(scored, name, differences),
        best_baselines=best_baselines(scored, name),
    )


def _report_2(inputs: Inputs, scored: Sequence[Scored]) -> Report2 | None:
    """None if no experiment predicts both lung and infection."""
    for one in scored:
        shown = [
            e
            for e in one.experiments
            if e.predicts_both and all("all" in e.results[target] for target in BOTH)
        ]
        if one.target == "infection" and shown:
            return Report2(
                half=one.half,
                rows=tuple(report_2_scores(e) for e in shown),
                printed=REPORT_2,
                shown=class_cases(inputs, one),
            )
    return None
