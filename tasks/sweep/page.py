"""Renders the results of a sweep: a page, a table, a picture of the curve, and text for the Prefect UI."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from tasks.common.files import write_table
from tasks.reporting.limitations import RESEARCH_USE
from tasks.reporting.words import SELECTION_WORDS, formatted, listed, signed
from tasks.sweep import charts
from tasks.sweep.charts import value_words
from tasks.sweep.document import SWEEP_FILE, Estimate, Sweep, TrialResult, Verdict

#: The template of the report, whose style this page shares.
REPORT = Path(__file__).parents[1] / "reporting" / "report.html.j2"

#: Files in the folder of a sweep's results.
PAGE, TABLE, CURVE = "index.html", "trials.csv", "curve.svg"

#: How many trials a sentence names.
NAMED = 6

VERDICT_WORDS: dict[Verdict, str] = {"best": "best", "level": "not distinguishable", "worse": "worse"}


class Row(NamedTuple):
    """A trial in the table of the page."""

    labels: list[str]
    """Its experiment if there are several, and the values of the swept keys."""
    verdict: Verdict
    words: str
    score: str
    span: str
    seed_sd: str
    behind: str
    behind_span: str
    milliseconds: str
    megabytes: str
    parameters: str
    on_front: bool


def write_results(sweep: Sweep, out: Path) -> None:
    """Write the document, the page, the table and the picture into a folder."""
    import pandas as pd  # takes half a second

    (out / SWEEP_FILE).write_text(sweep.to_json(), encoding="utf-8")
    (out / PAGE).write_text(render_page(sweep), encoding="utf-8")
    if curve := render_curve(sweep):
        (out / CURVE).write_text(curve, encoding="utf-8")
    write_table(pd.DataFrame(list(table_rows(sweep))), out / TABLE)


def render_page(sweep: Sweep) -> str:
    columns = _columns(sweep)
    headings = [*columns, "Val score", *(["SD over seeds"] if sweep.seeds > 1 else []), "Behind the best"]
    headings += ["Verdict", "ms per image", "MB", "Parameters", "Pareto front"]
    return (
        _templates()
        .get_template("page.html.j2")
        .render(
            sweep=sweep,
            title=title(sweep),
            opening=opening(sweep),
            curves=charts.curves(sweep),
            fronts=charts.fronts(sweep),
            headings=headings,
            sweep_columns=len(columns),
            rows=[_row(sweep, trial) for trial in sweep.ranking],
            on_front=list(on_front(sweep)),
            rules=list(_rules(sweep)),
            report_style=_report_style(),
            research_use=RESEARCH_USE,
            box=charts,
        )
    )


def render_curve(sweep: Sweep) -> str | None:
    """The first chart as a standalone picture; None if no key has several values."""
    found = charts.curves(sweep)
    if not found:
        return None
    text = '{% from "chart.svg.j2" import picture with context %}{{ picture(chart, true) }}'
    return _templates().from_string(text).render(chart=found[0], box=charts)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = lambda name: Markup("_<wbr>").join(str(name).split("_"))
    return environment


@cache
def _report_style() -> str:
    found = re.search(r"<style>\n(.*?)</style>", REPORT.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


# --- words --------------------------------------------------------------------------------------------------


def title(sweep: Sweep) -> str:
    keys = listed([key.name for key in sweep.swept])
    return f"Sweep of {keys} in {listed(sweep.experiments)}"


def opening(sweep: Sweep) -> list[str]:
    """What came out, in a few sentences."""
    best = sweep.best
    first = f"Best on the Val split: {settings_words(sweep, best)}, with {_score_words(sweep, best)}."
    if len(sweep.trials) == 1:
        return [first, "There is only one trial."]
    return [first, _on_level(sweep), *([] if sweep.covers_training else [ONE_SEED])]


def _on_level(sweep: Sweep) -> str:
    """Which trials cannot be told from the best."""
    level, others = sweep.level, len(sweep.trials) - 1
    if not level:
        return "Every other trial is worse: the intervals of all differences exclude zero."
    if len(level) == others:
        return "No other trial can be distinguished from it: the intervals of all differences include zero."
    named = [settings_words(sweep, trial) for trial in sweep.ranking if trial in level][:NAMED]
    more = f" and {len(level) - NAMED} more" if len(level) > NAMED else ""
    return (
        f"Of the {others} other trials, {len(level)} cannot be distinguished from it, because the interval "
        f"of the difference includes zero: {'; '.join(named)}{more}."
    )


ONE_SEED = (
    "No image was scored by several networks of a trial, so intervals cover the choice of images, not the "
    "variation between trainings. With --seeds 3 they cover both."
)


def settings_words(sweep: Sweep, trial: TrialResult) -> str:
    """The settings of a trial, such as `alpha 0.25`."""
    words = [f"{key} {value_words(value)}" for key, value in trial.settings.items()]
    return ", ".join([*([trial.experiment] if len(sweep.experiments) > 1 else []), *words])


def _score_words(sweep: Sweep, trial: TrialResult) -> str:
    score = trial.score
    bounds = f" (95% interval {_span(score)})" if score.low is not None else ""
    return f"{SELECTION_WORDS[sweep.selection]} {formatted(score.value)}{bounds}"


def on_front(sweep: Sweep) -> Iterator[str]:
    """What the Pareto front says."""
    found = [settings_words(sweep, trial) for trial in sweep.ranking if trial.on_front]
    yield (
        "A trial is on the Pareto front if no other one is at least as good in score, milliseconds and "
        f"parameters, and better in one of them. On it: {'; '.join(found)}."
    )
    costs = {(trial.cost.parameters, trial.cost.milliseconds) for trial in sweep.trials}
    if len(costs) == 1:
        yield "All trials have the same network, so they differ in score only."
    if sweep.device:
        yield (
            f"Milliseconds are those of the forward passes on {sweep.device}, the median of several batches, "
            "measured once for each kind of network. On another machine they differ."
        )


def _rules(sweep: Sweep) -> Iterator[tuple[str, str]]:
    targets = f", as a mean over {listed(sweep.targets)}" if len(sweep.targets) > 1 else ""
    yield (
        "Score",
        f"The {SELECTION_WORDS[sweep.selection]} on the {sweep.images:,} Val images of "
        f"{listed(sweep.classes)}{targets}: the score that also chose each trial's epoch and threshold. It "
        "is therefore somewhat too high, for all trials alike. Test images play no part.",
    )
    yield (
        "Intervals",
        "95%, by a studentised bootstrap over images within each class"
        + (" and the pooled variance between seeds." if sweep.covers_training else "; ")
        + ("" if sweep.covers_training else "the variation between trainings is not included."),
    )
    yield (
        "Not distinguishable",
        "The simultaneous interval of the difference from the best trial includes zero. The family is all "
        "pairs of trials, so choosing the best after the fact does not make them too narrow.",
    )
    yield "Trials", _method_words(sweep)


def _method_words(sweep: Sweep) -> str:
    seeds = f"{sweep.seeds} training{'s' if sweep.seeds > 1 else ''} for each"
    match sweep.method:
        case "grid":
            return f"Every combination of the listed values, {seeds}."
        case "random":
            return f"Drawn at random with seed {sweep.sampler_seed}, {seeds}."
        case "optuna":
            return (
                f"Suggested by Optuna's tree-structured Parzen estimator with seed {sweep.sampler_seed}, "
                f"{sweep.round} at a time, {seeds}."
            )


# --- tables -------------------------------------------------------------------------------------------------


def _columns(sweep: Sweep) -> list[str]:
    return [*(["Experiment"] if len(sweep.experiments) > 1 else []), *(key.name for key in sweep.swept)]


def _row(sweep: Sweep, trial: TrialResult) -> Row:
    behind = trial.behind
    return Row(
        labels=[
            *([trial.experiment] if len(sweep.experiments) > 1 else []),
            *(value_words(trial.settings[key.name]) for key in sweep.swept),
        ],
        verdict=trial.verdict,
        words=VERDICT_WORDS[trial.verdict],
        score=formatted(trial.score.value),
        span=_span(trial.score),
        seed_sd=formatted(_seed_sd(trial)),
        behind=signed(behind.value) if behind else "",
        behind_span=_span(behind, signed) if behind else "",
        milliseconds=formatted(trial.cost.milliseconds, 1),
        megabytes=formatted(trial.cost.megabytes, 2),
        parameters=f"{trial.cost.parameters:,}",
        on_front=trial.on_front,
    )


def _span(estimate: Estimate, show: Callable[[float], str] = formatted) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{show(estimate.low)} to {show(estimate.high)}"


def _seed_sd(trial: TrialResult) -> float | None:
    return stdev(trial.seed_scores) if len(trial.seed_scores) > 1 else None


def table_rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """A row for each trial, the best first."""
    for trial in sweep.ranking:
        behind = trial.behind
        yield {
            "trial": trial.name,
            "experiment": trial.experiment,
            **{key.name: value_words(trial.settings[key.name]) for key in sweep.swept},
            "seeds": len(trial.seed_scores),
            "score": trial.score.value,
            "low": trial.score.low,
            "high": trial.score.high,
            "seed_sd": _seed_sd(trial),
            "behind": behind.value if behind else None,
            "behind_low": behind.low if behind else None,
            "behind_high": behind.high if behind else None,
            "verdict": trial.verdict,
            "milliseconds": trial.cost.milliseconds,
            "megabytes": trial.cost.megabytes,
            "parameters": trial.cost.parameters,
            "pareto_front": trial.on_front,
        }


def markdown_table(sweep: Sweep) -> str:
    """The table of all trials as Markdown."""
    columns = [*_columns(sweep), "Val score", "95% interval", "behind", "verdict", "ms per image", "MB"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for trial in sweep.ranking:
        row = _row(sweep, trial)
        cells = [*row.labels, row.score, row.span, row.behind, row.words, row.milliseconds, row.megabytes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
