"""Print the results of checks, for people and for programs."""

import json
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator

from flows.checks.check import Examined, Finding, Level

#: The mark of each level, where the output can show it, and in plain ASCII.
MARKS = {Level.OK: ("✓", "+"), Level.WARNING: ("!", "!"), Level.FAULT: ("✗", "x")}

#: Terminal codes: green, yellow and red.
COLOURS = {Level.OK: "32", Level.WARNING: "33", Level.FAULT: "31"}

BOLD = "1"

#: Maximum width of a line on a terminal. Elsewhere, a finding is one line, for grep.
WIDEST = 110


def print_text(examined: Iterable[Examined]) -> int:
    """Print results as they arrive, with headings and a summary. Returns the number of faults."""
    levels: Counter[Level] = Counter()
    heading = ""
    for group, result in examined:
        if group != heading and result.findings:
            print("\n" * bool(heading) + _styled(group, BOLD))
            heading = group
        for finding in result.findings:
            levels[finding.level] += 1
            print("\n".join(_lines(finding)), flush=True)
    print(f"\n{_summary(levels)}")
    return levels[Level.FAULT]


def _lines(finding: Finding) -> Iterator[str]:
    unicode, plain = MARKS[finding.level]
    mark, arrow = (unicode, "→") if _shows(unicode + "→") else (plain, "->")
    yield _wrapped(finding.found, f"  {mark} ").replace(mark, _styled(mark, COLOURS[finding.level]), 1)
    if finding.remedy:
        yield _wrapped(finding.remedy, f"    {arrow} ")


def _wrapped(text: str, start: str) -> str:
    if not sys.stdout.isatty():
        return start + text
    width = min(shutil.get_terminal_size().columns, WIDEST)
    indent = " " * len(start)
    # A path or command must stay whole, so that it can be copied.
    return textwrap.fill(
        text,
        width,
        initial_indent=start,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(levels: Counter[Level]) -> str:
    counted = [
        _styled(f"{levels[level]} {level}{'' if levels[level] == 1 else 's'}", COLOURS[level])
        for level in (Level.FAULT, Level.WARNING)
        if levels[level]
    ]
    return " and ".join(counted) or _styled("Everything is fine", COLOURS[Level.OK])


def _styled(text: str, code: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{code}m{text}\033[0m"


def _shows(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def print_json(examined: Iterable[Examined]) -> int:
    """Print all results as one JSON document. Returns the number of faults."""
    results = list(examined)
    levels = Counter(finding.level for _, result in results for finding in result.findings)
    document = {
        "faults": levels[Level.FAULT],
        "warnings": levels[Level.WARNING],
        "checks": [
            {
                "group": group,
                "check": result.check,
                "seconds": round(result.seconds, 3),
                "findings": [
                    {"level": finding.level, "found": finding.found, "remedy": finding.remedy}
                    for finding in result.findings
                ],
            }
            for group, result in results
        ],
    }
    print(json.dumps(document, indent=2))
    return levels[Level.FAULT]
