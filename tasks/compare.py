"""Stage `compare`: computes everything that the report states, as tables and one JSON document.

Nothing in it depends on the time or on speed, so equal results give identical bytes.
"""

import argparse
from pathlib import Path

from tasks.comparison.inputs import read_inputs
from tasks.comparison.output import write_comparison
from tasks.comparison.sections import compare_all
from tasks.settings.params import Params, load_params
from tasks.support.cli import stage_main


def compare(params: Params, *, out: Path, **folders: Path) -> None:
    """Compare all experiments and the trivial predictors.

    Reads the files that `tasks.comparison.inputs.read_inputs` lists from `folders`. Writes under `out`:

        comparison.json   everything, in the schema of `tasks.comparison.document`
        scores.csv        one row per half, target, split, image set, experiment or trivial predictor, metric
        differences.csv   one row per pair, metric, split and image set
        sizes.csv         scores on quarters of the COVID-19 images, by the size of the reference mask
        detection.csv     sensitivity, specificity and area under the ROC curve, by image
        steps.csv         one row per post-processing step, metric, split and image set
        reliability.csv   one row per probability bin that contains pixels
        external.csv      one row per external dataset, target, experiment and metric, if there are any
        pictures.zip      X-rays, reference masks and predicted masks of the images to show

    Raises:
        InputError: a required plan, figure or prediction does not exist.
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
