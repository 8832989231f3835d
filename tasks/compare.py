"""Stage `compare`: all that the report says, computed once, as tables and one JSON document.

Nothing in it depends on the clock or on speed, so that equal results give equal bytes.
"""

import argparse
from pathlib import Path

from tasks.comparison.inputs import read_inputs
from tasks.comparison.output import write_comparison
from tasks.comparison.sections import compare_all
from tasks.settings.schema import Params, load_params
from tasks.support.cli import stage_main


def compare(params: Params, *, out: Path, **folders: Path) -> None:
    """Compare all experiments and the trivial predictors.

    Reads what `tasks.comparison.inputs.read_inputs` lists from `folders`. Writes under `out`:

        comparison.json   everything, by the schema `tasks.comparison.document`
        scores.csv        a row a half, target, image set, experiment or trivial predictor, and metric
        differences.csv   a row a pair and metric, on each image set
        steps.csv         a row a step of post-processing and metric, on each image set
        reliability.csv   a row a bin of probabilities that holds pixels
        pictures.zip      X-rays, reference masks and predicted masks of the images shown

    Raises:
        InputError: a plan, figure or prediction that is asked for does not exist.
    """
    inputs = read_inputs(params, **folders)
    write_comparison(compare_all(inputs, params.report.figures), inputs, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare all experiments and the trivial predictors.")
    parser.add_argument("params", type=Path, nargs="?", default=Path("params.yaml"))
    parser.add_argument("--plans", type=Path, default=Path("artifacts/plans"))
    parser.add_argument("--trained", type=Path, default=Path("artifacts/train"))
    parser.add_argument("--evaluated", type=Path, default=Path("artifacts/evaluation"))
    parser.add_argument("--baselines", type=Path, default=Path("artifacts/baselines"))
    parser.add_argument("--audit", type=Path, default=Path("artifacts/audit"))
    parser.add_argument("--packed", type=Path, default=Path("data/packed"))
    parser.add_argument("--raw", type=Path, default=Path("data/raw"))
    parser.add_argument("--out", type=Path, default=Path("artifacts/comparison"))
    args = vars(parser.parse_args())
    compare(load_params(args.pop("params")), **args)


if __name__ == "__main__":
    stage_main(main)
