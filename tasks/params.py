"""Write a preset and single changes into params.yaml, keeping its comments.

python -m tasks.params --preset presets/laptop.yaml --set alpha=0.3
"""

import argparse
from pathlib import Path

from tasks.common.files import replacing
from tasks.settings.changes import add_change_arguments, read_changes, with_changes
from tasks.settings.schema import read_text
from tasks.support.cli import stage_main


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a preset and single changes into params.yaml.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    add_change_arguments(parser)
    args = parser.parse_args()
    changes = read_changes(args.preset, args.assignments)
    text = with_changes(read_text(args.params, "name it with --params"), changes)
    with replacing(args.params) as beside:
        beside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    stage_main(main)
