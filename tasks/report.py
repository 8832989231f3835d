"""The last stage: one page, a summary and one metrics file, of all experiments and the trivial predictors.

What is said of the figures is computed from them. Nothing on the page depends on the clock or on speed, so
that equal results give equal bytes.
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from tasks import figures
from tasks.cli import InputError, stage_main
from tasks.files import replacing
from tasks.findings import findings, opening, title
from tasks.gallery import Gallery, figure_cases, loss_charts, spreads
from tasks.params import Params, load_params
from tasks.raw import SPLITS, RawDataset
from tasks.results import Experiment, Inputs
from tasks.tables import (
    COLUMNS,
    NUMERIC_COLUMNS,
    data_rows,
    iou_bars,
    leaks,
    published_rows,
    score_rows,
    score_tiles,
    settings,
)
from tasks.wording import IMAGE_SET_WORDS

TEMPLATE = Path(__file__).with_name("report.html.j2")
FIGURES = Path(__file__).with_name("figures.svg.j2")


def report(
    params: Params,
    *,
    plans: Path,
    trained: Path,
    evaluated: Path,
    baselines: Path,
    packed: Path,
    raw: Path,
    out: Path,
    metrics: Path,
) -> None:
    """Write the page, its summary and the metrics of all experiments.

    Reads of each experiment, in the order of params.yaml, `plans/NAME.json`,
    `trained/NAME/{history.csv,model.json}` and `evaluated/NAME/{metrics.json,images.csv,predictions.zip}`;
    beside them `baselines/metrics.json`, `packed/{images.csv,rejected.csv}` and `raw`.
    Writes `out/index.html`, `out/summary.md`, `out/figures.svg` and `metrics`; where an input is missing,
    none of them.

    Raises:
        InputError: a plan, figure or prediction that is asked for does not exist, or an experiment is named
            like a trivial predictor.
    """
    inputs = _read(params, plans, trained, evaluated, baselines, packed, raw)
    sentences = {target: findings(inputs, target) for target in inputs.targets}
    page, pictures = _page(inputs, sentences), _figures(inputs)
    summary = _summary(inputs, sentences)
    figures_of_merit = metrics_json(inputs)
    with (
        replacing(metrics) as metrics_part,
        replacing(out / "summary.md") as summary_part,
        replacing(out / "figures.svg") as figures_part,
        replacing(out / "index.html") as page_part,
    ):
        metrics_part.write_text(figures_of_merit, encoding="utf-8")
        summary_part.write_text(summary, encoding="utf-8")
        figures_part.write_text(pictures, encoding="utf-8")
        page_part.write_text(page, encoding="utf-8")


# Reading


def _read(
    params: Params, plans: Path, trained: Path, evaluated: Path, baselines: Path, packed: Path, raw: Path
) -> Inputs:
    table = pd.read_csv(packed / "images.csv", keep_default_na=False)
    rejected = pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False)
    experiments = tuple(_experiment(name, plans, trained, evaluated) for name in params.experiments)
    half = experiments[0].plan["half"]
    return Inputs(
        experiments=experiments,
        trivial=_json(baselines / "metrics.json"),
        table=table,
        rejected=rejected,
        fingerprint=hashlib.sha256((packed / "images.csv").read_bytes()).hexdigest(),
        raw=RawDataset(raw),
        figure_ids=figure_ids(table, half, params.report.figures),
        figures_rejected=int(rejected["id"].str.startswith(f"{half}/Test/COVID-19/").sum()),
        source=params.data.source,
    )


def _experiment(name: str, plans: Path, trained: Path, evaluated: Path) -> Experiment:
    plan = plans / f"{name}.json"
    if not plan.is_file():
        raise InputError(f"{plans}: no plan of {name}, which params.yaml names; the stage plan writes it")
    return Experiment(
        name=name,
        plan=_json(plan),
        model=_json(trained / name / "model.json"),
        history=pd.read_csv(trained / name / "history.csv"),
        results=_json(evaluated / name / "metrics.json"),
        images=pd.read_csv(evaluated / name / "images.csv", keep_default_na=False, na_values=["nan", ""]),
        predictions=evaluated / name / "predictions.zip",
    )


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def figure_ids(table: pd.DataFrame, half: str, positions: Sequence[int]) -> dict[int, str]:
    """The images at these positions (from 1) among a half's COVID-19 Test images in the order of file names.

    Raises:
        InputError: there are fewer images than that.
    """
    rows = table[(table["half"] == half) & (table["split"] == "Test") & (table["class"] == "COVID-19")]
    ids = sorted(rows["id"])
    beyond = [position for position in positions if position > len(ids)]
    if beyond:
        raise InputError(
            f"report.figures: there is no image {beyond[0]} among {len(ids)} COVID-19 Test images"
        )
    return {position: ids[position - 1] for position in positions}


# The page and the summary


def _render(template: Path, **values: Any) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _figures(inputs: Inputs) -> str:
    """The figures as an SVG of their own, for where the page can't be shown."""
    gallery = Gallery(inputs.raw)
    cases = figure_cases(inputs, gallery)
    return _render(FIGURES, cases=cases, xrays=list(gallery.xrays.values()))


def _page(inputs: Inputs, sentences: Mapping[str, list[str]]) -> str:
    gallery = Gallery(inputs.raw)
    differing, common = settings(inputs.experiments)
    main = inputs.targets[0]
    page = _render(
        TEMPLATE,
        inputs=inputs,
        title=title(inputs),
        lead=opening(inputs),
        main_target=main,
        best=inputs.ranking(main)[0],
        tiles=score_tiles(inputs, main),
        bars={target: iou_bars(inputs, target) for target in inputs.targets},
        differing=differing,
        common=common,
        numeric=NUMERIC_COLUMNS,
        data_rows=data_rows(inputs.table),
        splits=SPLITS,
        leaks=leaks(inputs.table),
        rejected=list(zip(inputs.rejected["id"], inputs.rejected["reason"], strict=True)),
        charts=loss_charts(inputs),
        columns=[heading for heading, _ in COLUMNS.values()],
        score_rows={
            (target, image_set): score_rows(inputs, target, image_set)
            for target in inputs.targets
            for image_set in IMAGE_SET_WORDS
        },
        published={target: published_rows(inputs, target) for target in inputs.targets},
        findings=sentences,
        figure_cases=figure_cases(inputs, gallery),
        spreads={target: spreads(inputs, target, gallery) for target in inputs.targets},
        xrays=list(gallery.xrays.values()),  # filled by the two lines above
        box=figures,
    )
    return _unbroken(page)


def _unbroken(page: str) -> str:
    """The page with no line broken within "COVID-19"; ids and what stands in code keep their plain hyphen."""
    words = re.compile(r"(<code>.*?</code>)|(?<!/)COVID-19(?!/)", re.DOTALL)
    return words.sub(lambda found: found[1] or "COVID\N{NON-BREAKING HYPHEN}19", page)


def _summary(inputs: Inputs, sentences: Mapping[str, list[str]]) -> str:
    """The page's key table and sentences in Markdown."""
    lines = [f"# {title(inputs)}", "", opening(inputs), ""]
    if inputs.phantoms:
        lines += ["**Synthetic phantoms: figures say nothing about patients.**", ""]
    for target in inputs.targets:
        lines += [*_summary_table(inputs, target), ""]
        lines += [*(f"- {sentence}" for sentence in sentences[target]), ""]
    lines += ["IoU and Dice are means per image; an empty truth scores 1 if predicted empty, else 0."]
    return "\n".join(lines) + "\n"


def _summary_table(inputs: Inputs, target: str) -> list[str]:
    headings = [heading for heading, _ in COLUMNS.values()]
    lines = [f"| {target} | images | {' | '.join(headings)} |", "| --- | --- |" + " ---: |" * len(headings)]
    for image_set, words in IMAGE_SET_WORDS.items():
        for row in score_rows(inputs, target, image_set):
            where = "as printed" if row.kind == "printed" else words
            lines.append(f"| {row.name} | {where} | {' | '.join(row.cells)} |")
    return lines


# Metrics


def metrics_json(inputs: Inputs) -> str:
    """Experiment or trivial predictor -> target -> image set -> metric; six decimals, null for NaN."""
    entries = {experiment.name: experiment.results for experiment in inputs.experiments}
    clash = sorted(entries.keys() & inputs.trivial.keys())
    if clash:
        raise InputError(f"experiments.{clash[0]}: this name is taken by a trivial predictor")
    return json.dumps(_rounded(entries | inputs.trivial), indent=2, sort_keys=True, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report and the metrics of all experiments.")
    parser.add_argument("params", type=Path, nargs="?", default=Path("params.yaml"))
    parser.add_argument("--plans", type=Path, default=Path("artifacts/plans"))
    parser.add_argument("--trained", type=Path, default=Path("artifacts/train"))
    parser.add_argument("--evaluated", type=Path, default=Path("artifacts/evaluation"))
    parser.add_argument("--baselines", type=Path, default=Path("artifacts/baselines"))
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("reports"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics.json"))
    args = vars(parser.parse_args())
    report(load_params(args.pop("params")), **args)


if __name__ == "__main__":
    stage_main(main)
