"""Stage `report`: renders the results of the stage compare as a page, a summary, a checklist and metrics.

Nothing on the page depends on the time or on speed, so equal results give identical bytes.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

from tasks.claim.checklist import checklist
from tasks.common.files import replacing
from tasks.comparison.document import COMPARISON_FILE, PICTURES_FILE, Document
from tasks.reporting.metrics import metrics_json
from tasks.reporting.page import render_figures, render_page
from tasks.reporting.summary import summarise
from tasks.support.cli import stage_main


def report(comparison: Path, out: Path, metrics: Path) -> None:
    """Write the page, its summary and the metrics of all experiments.

    Reads `comparison.json` and `pictures.zip` under `comparison`. Writes `out/index.html`, `out/summary.md`,
    `out/claim.md`, `out/figures.svg` and `metrics`, or none of them if an input is missing.

    Raises:
        InputError: `comparison.json` is missing or has another version of the schema.
    """
    document = Document.read(comparison / COMPARISON_FILE)
    pictures = comparison / PICTURES_FILE
    texts = {
        metrics: metrics_json(document),
        out / "summary.md": summarise(document),
        out / "claim.md": checklist(document),
        out / "figures.svg": render_figures(document, pictures),
        out / "index.html": render_page(document, pictures),
    }
    with ExitStack() as stack:
        for path, text in texts.items():
            stack.enter_context(replacing(path)).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the report and the metrics of all experiments.")
    parser.add_argument("comparison", type=Path, nargs="?", default=Path("artifacts/comparison"))
    parser.add_argument("out", type=Path, nargs="?", default=Path("reports"))
    parser.add_argument("metrics", type=Path, nargs="?", default=Path("metrics.json"))
    args = parser.parse_args()
    report(args.comparison, args.out, args.metrics)


if __name__ == "__main__":
    stage_main(main)
