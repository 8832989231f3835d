"""Builds the document, with one section per half and target."""

from collections.abc import Sequence

from tasks.comparison.calibration import reliability
from tasks.comparison.cases import class_cases, figures, spreads, worst
from tasks.comparison.clinical import detection, limits, sizes
from tasks.comparison.consistency import consistency
from tasks.comparison.dataset import dataset
from tasks.comparison.differences import against_baselines, best_baselines, choice, families, steps
from tasks.comparison.document import (
    SCHEMA_VERSION,
    Choice,
    Document,
    ImageSet,
    Report2,
    ScoreRow,
    Section,
)
from tasks.comparison.ensembles import ensemble
from tasks.comparison.external import external
from tasks.comparison.inputs import Inputs, Scored
from tasks.comparison.published import PUBLISHED, REPORT_1, REPORT_2
from tasks.comparison.scores import markings, score_rows
from tasks.comparison.trainings import BOTH, cross_validation, experiment, report_2_scores


def compare_all(inputs: Inputs, positions: Sequence[int]) -> Document:
    """Compute the document. `positions` select the Test images to show as figures."""
    scored = inputs.scored()
    sections = tuple(_section(inputs, one, positions, opens) for one, opens in _with_openings(scored))
    return Document(
        schema_version=SCHEMA_VERSION,
        source=inputs.source,
        phantoms=inputs.phantoms,
        published=inputs.published,
        dataset=dataset(inputs),
        plans=inputs.plans,
        experiments=tuple(experiment(e) for e in inputs.experiments),
        groups=inputs.groups,
        sections=sections,
        report_2=_report_2(inputs, sections),
        consistency=consistency(sections, inputs.published),
        external=tuple(external(found, scored, inputs.ensembles) for found in inputs.external),
        ensembles=tuple(ensemble(found, scored) for found in inputs.ensembles),
        cross_validations=tuple(cross_validation(e, scored) for e in inputs.experiments if e.folds > 1),
    )


def _with_openings(scored: Sequence[Scored]) -> list[tuple[Scored, bool]]:
    """Each item with whether it is the first of its half."""
    return [(one, i == 0 or scored[i - 1].half != one.half) for i, one in enumerate(scored)]


def _section(inputs: Inputs, scored: Scored, positions: Sequence[int], opens: bool) -> Section:
    chosen = choice(scored)
    return Section(
        half=scored.half,
        target=scored.target,
        experiments=tuple(scored.names),
        choice=chosen,
        val=tuple(
            ImageSet(name=name, rows=score_rows(scored, name, "Val")) for name in scored.image_sets("Val")
        ),
        image_sets=tuple(_image_set(scored, name) for name in scored.image_sets()),
        markings=markings(scored),
        printed=REPORT_1 if scored.target == "infection" else (),
        published=PUBLISHED.get(scored.target, ()) if inputs.published else (),
        reliability=reliability(scored),
        detection=detection(scored),
        limits=limits(scored),
        sizes=sizes(scored),
        steps=steps(scored),
        spreads=spreads(scored, _ranking(chosen)),
        worst=worst(scored, _ranking(chosen)),
        figures=figures(inputs, scored, positions) if opens else None,
    )


def _ranking(chosen: Choice | None) -> list[str]:
    """The experiments by decreasing score on Val."""
    return list(chosen.scores) if chosen else []


def _image_set(scored: Scored, name: str) -> ImageSet:
    found, rows = families(scored, name), score_rows(scored, name)
    return ImageSet(
        name=name,
        rows=rows,
        families=found,
        against_baselines=against_baselines(scored, name, found),
        best_baselines=best_baselines(rows),
    )


def _report_2(inputs: Inputs, sections: Sequence[Section]) -> Report2 | None:
    """The first half in which an experiment predicts both lung and infection; None if there is none."""
    for half in dict.fromkeys(section.half for section in sections):
        of_half = {section.target: section for section in sections if section.half == half}
        shown = [e for e in inputs.experiments if e.half == half and e.predicts_both]
        if shown and (chosen := of_half["infection"].choice):
            rows = {target: _all_images(of_half[target]) for target in BOTH}
            return Report2(
                half=half,
                rows=tuple(report_2_scores(e, *(rows[target][e.name] for target in BOTH)) for e in shown),
                printed=REPORT_2,
                shown=class_cases(inputs, half, _ranking(chosen)),
            )
    return None


def _all_images(section: Section) -> dict[str, ScoreRow]:
    """The rows of the largest image set."""
    found = section.image_set("all") or section.main
    return {row.name: row for row in found.rows}
