"""The last stage: one page, a summary and one metrics file, of all experiments and the trivial predictors.

What is said of the figures is computed from them. Nothing on the page depends on the clock or on speed, so
that equal results give equal bytes.
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from tasks.common.files import replacing
from tasks.common.raw import SPLITS, RawDataset
from tasks.reporting import charts as figures
from tasks.reporting import dataset as dataset_page
from tasks.reporting.curves import loss_charts, reliability_charts, share_chart
from tasks.reporting.differences import against_best, matrix, steps, whiskers
from tasks.reporting.findings import Sentences, opening, sentences, title
from tasks.reporting.gallery import LEADERS, Gallery, class_cases, figure_cases, spreads
from tasks.reporting.inputs import Audited, Experiment, Inputs
from tasks.reporting.published import (
    REPORT_2_HEADINGS,
    REPORT_2_PRINTED,
    own_pairs,
    printed_pairs,
    report_2_rows,
)
from tasks.reporting.score_tables import (
    MAIN_COLUMNS,
    NSD_TOLERANCE,
    POOLED_COLUMNS,
    iou_bars,
    score_table,
    score_tiles,
)
from tasks.reporting.settings import NUMERIC_COLUMNS, published_rows, settings
from tasks.reporting.summary import summarise
from tasks.reporting.words import IMAGE_SET_NAMES, IMAGE_SET_WORDS, formatted, target_words
from tasks.scoring.seeds import mean_metrics
from tasks.settings.schema import DATASET, Params, load_params
from tasks.support.cli import InputError, stage_main, without_secrets

TEMPLATE = Path(__file__).parent / "reporting" / "report.html.j2"
FIGURES = Path(__file__).parent / "reporting" / "figures.svg.j2"


def report(
    params: Params,
    *,
    plans: Path,
    trained: Path,
    evaluated: Path,
    baselines: Path,
    audit: Path,
    packed: Path,
    raw: Path,
    out: Path,
    metrics: Path,
) -> None:
    """Write the page, its summary and the metrics of all experiments.

    Reads of each training, in the order of params.yaml, `plans/NAME.json`,
    `trained/NAME/{history.csv,network/network.json}` and
    `evaluated/NAME/{metrics.json,images.csv,steps.csv,calibration.csv,settings.json,predictions.zip}`;
    beside them `baselines/HALF/{metrics.json,images.csv}`, `packed/{images.csv,rejected.csv}`, `raw`, and
    what the stage audit wrote. Writes `out/index.html`, `out/summary.md`, `out/figures.svg` and `metrics`;
    where an input is missing, none of them.

    Raises:
        InputError: a plan, figure or prediction that is asked for does not exist, or an experiment is named
            like a trivial predictor.
    """
    inputs = _read(params, plans, trained, evaluated, baselines, audit, packed, raw)
    figures_of_merit = metrics_json(inputs)
    said = sentences(inputs)
    page, pictures, summary = _page(inputs, said), _figures(inputs), summarise(inputs, said)
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
    params: Params,
    plans: Path,
    trained: Path,
    evaluated: Path,
    baselines: Path,
    audit: Path,
    packed: Path,
    raw: Path,
) -> Inputs:
    table = pd.read_csv(packed / "images.csv", keep_default_na=False)
    rejected = pd.read_csv(packed / "rejected.csv", dtype=str, keep_default_na=False)
    experiments = tuple(_experiment(name, params, plans, trained, evaluated) for name in params.experiments)
    half = experiments[0].plan["half"]
    baselines = baselines / half
    return Inputs(
        experiments=experiments,
        trivial=_json(baselines / "metrics.json"),
        trivial_images=_images(baselines / "images.csv"),
        table=table,
        rejected=rejected,
        audit=_audited(audit),
        fingerprint=hashlib.sha256((packed / "images.csv").read_bytes()).hexdigest(),
        raw=RawDataset(raw),
        figure_ids=figure_ids(table, half, params.report.figures),
        figures_rejected=int(rejected["id"].str.startswith(f"{half}/Test/COVID-19/").sum()),
        source=without_secrets(params.data.source),
    )


def _experiment(name: str, params: Params, plans: Path, trained: Path, evaluated: Path) -> Experiment:
    """An experiment with its trainings, which differ in the seed alone, put together."""
    trainings = {plan.seed: training for training, plan in params.plans.items() if plan.experiment == name}
    folders = [evaluated / training for training in trainings.values()]
    settings = [_json(folder / "settings.json") for folder in folders]
    of_first = plans / f"{next(iter(trainings.values()))}.json"
    if not of_first.is_file():
        raise InputError(f"{of_first}: no such file; the stage plan writes it for {name} of params.yaml")

    def together(read: Callable[[Path], pd.DataFrame], file: str, within: Sequence[Path]) -> pd.DataFrame:
        return pd.concat([read(folder / file) for folder in within], ignore_index=True)

    return Experiment(
        name=name,
        plan=_json(of_first),
        prediction=settings[0]["prediction"],
        networks={
            seed: _json(trained / training / "network" / "network.json")
            for seed, training in trainings.items()
        },
        history=together(pd.read_csv, "history.csv", [trained / name for name in trainings.values()]),
        results=mean_metrics([_json(folder / "metrics.json") for folder in folders]),
        images=together(_images, "images.csv", folders),
        steps=together(_scores, "steps.csv", folders),
        calibration=together(_scores, "calibration.csv", folders),
        thresholds={
            str(seed): of_one["thresholds"] for seed, of_one in zip(trainings, settings, strict=True)
        },
        predictions=folders[0] / "predictions.zip",
    )


def _audited(folder: Path) -> Audited:
    counts, problems, pairs, dropped = (
        pd.read_csv(folder / f"{name}.csv") for name in ("counts", "problems", "pairs", "dropped")
    )
    pairs = pairs.astype({"exact": bool, "across": bool})  # of an empty table pandas can't tell
    return Audited(counts, problems, pairs, dropped, **_json(folder / "audit.json"))


def _scores(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values=["nan", ""])


def _images(path: Path) -> pd.DataFrame:
    """The rows of single images, with `marked`: 1 where anything is predicted."""
    table = _scores(path)
    return table.assign(marked=(table["tp"] + table["fp"] > 0).astype(float))


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


@cache
def _template(path: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"breakable": _breakable, "number": formatted}
    return environment.from_string(path.read_text(encoding="utf-8"))


def _breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _figures(inputs: Inputs) -> str:
    """The figures as an SVG of their own, for where the page can't be shown."""
    gallery = Gallery(inputs.raw)
    cases = figure_cases(inputs, gallery)
    return _template(FIGURES).render(cases=cases, xrays=list(gallery.xrays.values()))


def _page(inputs: Inputs, said: Sentences) -> str:
    gallery = Gallery(inputs.raw)
    differing, common = settings(inputs.experiments)
    main = inputs.targets[0]
    compared = [t for t in inputs.targets if len(inputs.with_target(t)) > 1]
    scored = [(target, image_set) for target in inputs.targets for image_set in inputs.image_sets(target)]
    page = _template(TEMPLATE).render(
        inputs=inputs,
        title=title(inputs),
        lead=opening(inputs),
        main_target=main,
        best=inputs.ranking(main)[0],
        tiles=score_tiles(inputs, main),
        bars={target: iou_bars(inputs, target) for target in inputs.targets},
        target_words=target_words,
        set_words=IMAGE_SET_WORDS,
        set_names=IMAGE_SET_NAMES,
        differing=differing,
        common=common,
        numeric=NUMERIC_COLUMNS,
        splits=SPLITS,
        count_rows=dataset_page.count_rows(inputs),
        has_published=dataset_page.has_published(inputs),
        on_dataset=dataset_page.findings(inputs),
        leaks=dataset_page.leaks(inputs, gallery),
        problems=list(zip(inputs.audit.problems["id"], inputs.audit.problems["problem"], strict=True)),
        charts=loss_charts(inputs),
        main_tables={place: score_table(inputs, *place, MAIN_COLUMNS) for place in scored},
        pooled_tables={place: score_table(inputs, *place, POOLED_COLUMNS) for place in scored},
        nsd_tolerance=NSD_TOLERANCE,
        published={target: published_rows(inputs, target) for target in inputs.targets},
        said=said,
        reliability={target: reliability_charts(inputs, target) for target in inputs.targets},
        share=share_chart(inputs),
        compared=compared,
        leads={(t, s): against_best(inputs, t, s) for t, s in scored if t in compared},
        matrices={(t, s): matrix(inputs, t, s) for t, s in scored if t in compared},
        whiskers=whiskers,
        one_training=min(len(e.seeds) for e in inputs.experiments) == 1,
        printed_pairs=printed_pairs(inputs),
        own_pairs=own_pairs(inputs),
        report_2_headings=REPORT_2_HEADINGS,
        report_2_printed=REPORT_2_PRINTED,
        report_2_rows=report_2_rows(inputs),
        class_cases=class_cases(inputs, gallery),
        steps={target: steps(inputs, target) for target in inputs.targets},
        figure_cases=figure_cases(inputs, gallery),
        leaders=LEADERS,
        spreads={target: spreads(inputs, target, gallery) for target in inputs.masks},
        xrays=list(gallery.xrays.values()),  # filled by the lines above
        box=figures,
    )
    return _unbroken(page)


def _unbroken(page: str) -> str:
    """The page with no line broken within "COVID-19"; ids and what stands in code keep their plain hyphen."""
    words = re.compile(r"(<code>.*?</code>)|(?<!/)COVID-19(?!/)", re.DOTALL)
    return words.sub(lambda found: found[1] or "COVID\N{NON-BREAKING HYPHEN}19", page)


# Metrics


def metrics_json(inputs: Inputs) -> str:
    """Experiment or trivial predictor -> target -> image set -> metric; six decimals, null for NaN.

    Beside them the audit's figures of the dataset.
    """
    entries = {experiment.name: experiment.results for experiment in inputs.experiments}
    content = entries | inputs.trivial | {DATASET: inputs.audit.figures}
    return json.dumps(_rounded(content), indent=2, sort_keys=True, allow_nan=False) + "\n"


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
    parser.add_argument("--audit", type=Path, default=Path("artifacts/audit"))
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("reports"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics.json"))
    args = vars(parser.parse_args())
    report(load_params(args.pop("params")), **args)


if __name__ == "__main__":
    stage_main(main)
