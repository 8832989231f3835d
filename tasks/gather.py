"""Stage `gather`: puts the network of a seed beside those of the earlier seeds of its experiment.

DVC cannot make a stage depend on a list of folders whose length params.yaml decides. So each seed but the
first has a stage, which depends on that of the seed before.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tasks.common.files import replacing
from tasks.support.cli import stage_main

#: As in tasks.networks.network, which imports torch.
DESCRIPTION = "network.json"


def gather(before: Path, network: Path, out: Path) -> None:
    """Copy networks to subfolders of `out`, named by their trainings.

    Args:
        before: the network of the first seed, or the networks that this stage gathered for an earlier one.
        network: the network to add.
        out: the folder to create.
    """
    with replacing(out) as partial:
        partial.mkdir()
        for folder in (*_networks(before), network):
            plan = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["plan"]
            shutil.copytree(folder, partial / plan["name"])


def _networks(folder: Path) -> Iterator[Path]:
    if (folder / DESCRIPTION).exists():
        yield folder
    else:
        yield from sorted(folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the network of a seed beside those of earlier seeds.")
    parser.add_argument(
        "before", type=Path, help="artifacts/train/TRAINING/network or artifacts/ensembles/TRAINING"
    )
    parser.add_argument("network", type=Path, help="artifacts/train/TRAINING/network")
    parser.add_argument("out", type=Path, help="folder to create")
    args = parser.parse_args()
    gather(args.before, args.network, args.out)


if __name__ == "__main__":
    stage_main(main)
