"""Stage `export`: writes an experiment as a bundle, the folder that `cxr predict` runs.

Does not import torch, which takes seconds to load.
"""

import argparse
from pathlib import Path

from tasks.bundles.assemble import Outputs, write_bundle
from tasks.comparison.document import COMPARISON_FILE, Document
from tasks.support.cli import InputError, stage_main


def export(name: str, comparison: Path, outputs: Outputs, out: Path) -> None:
    """Write the bundle of the experiment `name`, with the networks of all its seeds.

    Reads `comparison.json` under `comparison`. Writes the files that `tasks.bundles.schema` lists.

    Raises:
        InputError: the comparison has no such experiment.
    """
    document = Document.read(comparison / COMPARISON_FILE)
    if name not in {experiment.name for experiment in document.experiments}:
        raise InputError(f"{comparison}: {name!r} is not one of its experiments")
    bundle = write_bundle(name, document, outputs, out)
    networks = sum(len(step.networks) for step in bundle.steps)
    print(f"{name}: {networks} network{'s' if networks > 1 else ''} in {out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an experiment as a bundle.")
    parser.add_argument("experiment")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--comparison", type=Path, default=Path("artifacts/comparison"))
    parser.add_argument("--converted", type=Path, default=Path("artifacts/converted"))
    parser.add_argument("--trained", type=Path, default=Path("artifacts/train"))
    parser.add_argument("--evaluated", type=Path, default=Path("artifacts/evaluation"))
    parser.add_argument("--packed", type=Path, required=True, help="data/packed/SIZE, of any size")
    parser.add_argument("--audit", type=Path, default=Path("artifacts/audit"))
    args = parser.parse_args()
    outputs = Outputs(args.converted, args.trained, args.evaluated, args.packed, args.audit)
    export(args.experiment, args.comparison, outputs, args.out)


if __name__ == "__main__":
    stage_main(main)
