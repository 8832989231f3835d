"""Calibration of the probabilities."""

import numpy as np
import pandas as pd

from models.metrics import expected_calibration_error
from tasks.comparison.document import Reliability, ReliabilityLine
from tasks.comparison.inputs import ExperimentResults, Scored


def reliability(scored: Scored) -> tuple[Reliability, ...]:
    """Per experiment: the share of reference pixels against the mean probability."""
    found = (_reliability(e, scored) for e in scored.experiments)
    return tuple(of_one for of_one in found if any(line.true_share for line in of_one.lines))


def _reliability(e: ExperimentResults, scored: Scored) -> Reliability:
    return Reliability(
        experiment=e.name,
        ece=calibration_error(e.calibration[e.calibration["seed"] == e.seeds[0]], scored.target, scored.main),
        lines=tuple(
            _line(e, scored.target, image_set)
            for image_set in scored.image_sets()
            if image_set in (scored.main, "all")
        ),
    )


def _line(e: ExperimentResults, target: str, image_set: str) -> ReliabilityLine:
    bins = pooled_bins(e.calibration, target, image_set)
    return ReliabilityLine(
        image_set=image_set,
        mean_probability=tuple(bins["mean_probability"].tolist()),
        true_share=tuple(bins["true_share"].tolist()),
    )


def pooled_bins(calibration: pd.DataFrame, target: str, image_set: str) -> pd.DataFrame:
    """The bins of a target and image set, with the pixels of all seeds added up."""
    rows = calibration[(calibration["target"] == target) & (calibration["image_set"] == image_set)]
    sums = rows[["bin", "pixels"]].assign(
        mean_probability=rows["mean_probability"] * rows["pixels"],
        true_share=rows["true_share"] * rows["pixels"],
    )
    sums = sums.groupby("bin").sum()
    return sums[["mean_probability", "true_share"]].div(sums["pixels"], axis=0)


def calibration_error(bins: pd.DataFrame, target: str, image_set: str) -> float:
    """The expected calibration error of one network or trivial predictor, from its bins."""
    rows = bins[(bins["target"] == target) & (bins["image_set"] == image_set)]
    sums = rows[["mean_probability", "true_share"]].mul(rows["pixels"], axis=0)
    return expected_calibration_error(np.column_stack([rows["pixels"], sums]).astype(float))
