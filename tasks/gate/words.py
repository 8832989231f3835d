"""The verdict as text: one table for an artifact or a report, and plain lines for a terminal."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from tasks.gate.verdict import Finding, Verdict
from tasks.reporting.words import SELECTION_WORDS

#: The columns of numbers are aligned to the right.
NUMBERS = range(2, 7)
HEADINGS = (
    *("rule", "images", "number", "champion", "challenger", "difference (95% interval)", "limit"),
    "result",
)
RESULTS = {True: "passed", False: "FAILED", None: "undecided"}
REPORTED = "reported"
OUTCOMES = {
    "passed": "The challenger passed.",
    "failed": "The challenger failed.",
    "undecided": "Undecided: the challenger may not replace the champion.",
}
LIMITS = {"low above": "low end above", "high at most": "high end at most", "at most": "at most"}
FIRST = "The challenger may be the first champion."


def headline(verdict: Verdict) -> str:
    """The outcome in one sentence."""
    return FIRST if verdict.passed and verdict.champion is None else OUTCOMES[verdict.outcome]


def as_markdown(verdict: Verdict) -> str:
    """The verdict as Markdown."""
    rows = [HEADINGS, ("---", "---", *["---:"] * 5, "---"), *map(_cells, verdict.findings)]
    parts = [
        f"**{headline(verdict)}**",
        "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in rows),
        "\n".join(f"- {sentence}" for sentence in sentences(verdict)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_html(verdict: Verdict, title: str) -> str:
    """The verdict as a section of the report's page, in its style."""
    template = Path(__file__).with_name("verdict.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title=title,
        headline=headline(verdict),
        headings=[heading.capitalize() for heading in HEADINGS],
        rows=[[_with_minus(cell) for cell in _cells(finding)] for finding in verdict.findings],
        numbers=NUMBERS,
        failed=RESULTS[False],
        reported=REPORTED,
        sentences=list(sentences(verdict)),
    )


def as_lines(verdict: Verdict) -> str:
    """The verdict as aligned lines."""
    rows = [HEADINGS, *map(_cells, verdict.findings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([headline(verdict), *lines, *sentences(verdict)])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        yield f"{cell:>{width}}" if place in NUMBERS else f"{cell:{width}}"


def sentences(verdict: Verdict) -> Iterator[str]:
    """What the table does not say: why rules failed, images that are left out, what is unknown."""
    for finding in verdict.findings:
        if finding.reason:
            yield f"{finding.rule}, {finding.images}: {finding.reason}."
    for one in verdict.left_out:
        if one.either:
            yield (
                f"{one.images}: {one.either} of {one.either + one.judged} images left out, because a network "
                f"was trained on them (challenger {one.challenger}, champion {one.champion})."
            )
    yield (
        f"Judged on {verdict.target}. The main score is the {_main_score(verdict)}; false alarms are the "
        "share of controls in which anything is marked; other scores are mean Dice."
    )
    yield from verdict.notes


def _main_score(verdict: Verdict) -> str:
    return SELECTION_WORDS.get(verdict.selection, verdict.selection)


def _with_minus(cell: str) -> str:
    """With the sign of typography, which does not wrap."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", cell)


def _cells(found: Finding) -> tuple[str, ...]:
    interval = ""
    if found.difference is not None and found.low is not None and found.high is not None:
        interval = f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    limit = f"{LIMITS[found.limit]} {found.bound:g}" if found.limit and found.bound is not None else ""
    return (
        found.rule,
        found.images,
        f"{found.count:,}",
        _number(found.champion),
        _number(found.challenger),
        interval,
        limit,
        RESULTS[found.passed] if found.decides else REPORTED,
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|") or " "
