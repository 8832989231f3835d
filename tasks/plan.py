"""Stage `plan`: writes one file per training, and one per experiment with its prediction settings.

    artifacts/plans/TRAINING.json                everything that determines a training
    artifacts/plans/EXPERIMENT.prediction.json   how its probabilities become masks
    artifacts/plans/folds.csv                    for the stage audit, which draws folds: one row per training,
                                                 with its half, its number of folds and the seed of their lot;
                                                 half and seed are empty without folds

A training depends on its plan and not on params.yaml. A new alpha therefore retrains only the experiments
that use alpha, and a new threshold retrains none. Every params.yaml is validated before anything runs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from tasks.common.files import replacing
from tasks.common.weights import read_weights
from tasks.settings.params import Params, load_params
from tasks.support.cli import stage_main


def plan(params: Params, out: Path) -> None:
    """Write `TRAINING.json` for each training, `EXPERIMENT.prediction.json` for each, and `folds.csv`.

    Raises:
        InputError: weights from which a training is to start do not exist, or are others.
    """
    with replacing(out) as partial:
        partial.mkdir()
        for name, training in params.plans.items():
            if training.start_from:  # fail now, and not when the training is due
                read_weights(training.start_from.weights, training.start_from.sha256)
            (partial / f"{name}.json").write_text(training.to_json(), encoding="utf-8")
        for name, experiment in params.experiments.items():
            text = experiment.prediction.to_json()
            (partial / f"{name}.prediction.json").write_text(text, encoding="utf-8")
        (partial / "folds.csv").write_text("".join(_folds(params)), encoding="utf-8")


def _folds(params: Params) -> Iterator[str]:
    """The lines of folds.csv. The trainings of a cross-validation have its first seed, for the same folds."""
    yield "training,half,folds,seed\n"
    for name, training in params.plans.items():
        if training.folds > 1:
            yield f"{name},{training.half},{training.folds},{training.seed - training.fold}\n"
        else:
            yield f"{name},,1,\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("params", type=Path)
    parser.add_argument("plans", type=Path, help="folder to create")
    args = parser.parse_args()
    plan(load_params(args.params), args.plans)


if __name__ == "__main__":
    stage_main(main)
