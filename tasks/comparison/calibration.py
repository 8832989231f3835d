"""Calibration of the probabilities, and the infected share of the lung."""

import pandas as pd

from tasks.comparison.document import InfectedShare, Reliability, ReliabilityLine
from tasks.comparison.inputs import ExperimentResults, Scored

RELIABILITY_SETS = ("covid", "all")


def reliability(scored: Scored) -> tuple[Reliability, ...]:
    """Per experiment, by decreasing IoU: the share of reference pixels against the mean probability."""
    found = (_reliability(e, scored) for e in scored.ranking())
    return tuple(of_one for of_one in found if any(line.true_share for line in of_one.lines))


def _reliability(e: ExperimentResults, scored: Scored) -> Reliability:
    return Reliability(
        experiment=e.name,
        ece=scored.scores(e, "covid").get("ece"),
        lines=tuple(_line(e, scored.target, image_set) for image_set in RELIABILITY_SETS),
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


def infected_share(scored: Scored) -> InfectedShare | None:
    """The shares of the best experiment that has them; None if none has or the target is not infection."""
    for e in scored.ranking() if scored.target == "infection" else ():
        rows = e.first_seed("infection", "covid")  # lacks the share columns where no lungs are known
        shares = rows.reindex(columns=["true_share", "predicted_share"]).dropna().astype(float)
        if len(shares):
            scores = scored.scores(e, "covid")
            return InfectedShare(
                experiment=e.name,
                error=scores.get("share_error"),
                correlation=scores.get("share_correlation"),
                reference=tuple(shares["true_share"].tolist()),
                predicted=tuple(shares["predicted_share"].tolist()),
            )
    return None
