"""Formats and prints the results of benchmarks."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIB = 2**20


def percent(share: float | None) -> str:
    return "refused" if share is None else f"{share:.1%}"


def append_json(file: Path | None, row: Mapping[str, Any]) -> None:
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")


def spread_of(values: Sequence[float], form: str = ".1f") -> str:
    """Format the median, minimum and maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round, since changes in the machine's speed affect both values."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print columns, the first left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        print("  ".join([f"{first:{widths[0]}}", *cells]), flush=True)
