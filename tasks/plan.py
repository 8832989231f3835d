"""Stage `plan`: two files an experiment, with all that determines its training, and its evaluation.

A training depends on its plan, not on params.yaml: so a new alpha retrains the experiments that use
alpha, a new threshold retrains none, and every change of params.yaml passes the schema before anything runs.
"""

import argparse
from pathlib import Path

from tasks.common.files import replacing
from tasks.settings.schema import Params, load_params
from tasks.support.cli import stage_main


def plan(params: Params, out: Path) -> None:
    """Write `NAME.json` and `NAME.prediction.json` for each experiment under `out`."""
    with replacing(out) as partial:
        partial.mkdir()
        for name, experiment in params.plans.items():
            (partial / f"{name}.json").write_text(experiment.to_json(), encoding="utf-8")
            prediction = params.experiments[name].prediction
            (partial / f"{name}.prediction.json").write_text(prediction.to_json(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("plans", type=Path, help="the folder to make")
    args = parser.parse_args()
    plan(load_params(args.params), args.plans)


if __name__ == "__main__":
    stage_main(main)
