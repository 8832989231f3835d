"""The report's training curves, its reliability plots and the infected share of the lung."""

import json

import numpy as np
import pandas as pd

from tasks.reporting import charts as figures
from tasks.reporting.inputs import Experiment, Inputs
from tasks.reporting.words import formatted


def loss_charts(inputs: Inputs) -> list[tuple[Experiment, figures.Chart, figures.Chart]]:
    """Per experiment its losses and its validation Dice; epochs shared by all, losses by equal formulas."""
    last = max(int(e.history["epoch"].max()) for e in inputs.experiments)
    highest: dict[str, float] = {}
    for e in inputs.experiments:
        losses = e.history[["train_loss", "val_loss"]].to_numpy(dtype=float)
        finite = losses[np.isfinite(losses)]
        key = _formula(e)
        highest[key] = max(highest.get(key, 0.0), float(finite.max()) if finite.size else 0.0)
    return [(e, *_charts_of(e, last, highest[_formula(e)])) for e in inputs.experiments]


def _charts_of(e: Experiment, last: int, highest: float) -> tuple[figures.Chart, figures.Chart]:
    best = int(e.network["best_epoch"])
    losses = _of_seeds(e, {"train": "train_loss", "validation": "val_loss"})
    dice = _of_seeds(e, {"validation": "val_dice"})
    return (
        figures.curves("Loss", losses, last_epoch=last, y_high=highest, best_epoch=best),
        figures.curves("Validation Dice", dice, last_epoch=last, y_high=1.0, best_epoch=best),
    )


def _of_seeds(e: Experiment, roles: dict[str, str]) -> list[figures.Curve]:
    """A curve for each role (with its column of the history) and seed, the first seed's on top."""
    return [
        figures.Curve(
            role if seed == e.seeds[0] else f"{role} other",
            of_seed["epoch"].astype(int).tolist(),
            of_seed[column].tolist(),
        )
        for seed in reversed(e.seeds)
        for of_seed in [e.history[e.history["seed"] == seed]]
        for role, column in roles.items()
    ]


def _formula(e: Experiment) -> str:
    return str(e.plan["loss"]) + json.dumps(e.plan.get("loss_options"), sort_keys=True)


RELIABILITY_ROLES = {"covid": "validation", "all": "train"}  # the same two strokes as the curves


def reliability_charts(inputs: Inputs, target: str) -> list[figures.Chart]:
    """Of each experiment the share of true pixels over the mean probability, a point a bin."""
    return [chart for e in inputs.ranking(target) if (chart := _reliability(e, target))]


def _reliability(e: Experiment, target: str) -> figures.Chart | None:
    bins = {image_set: pooled_bins(e.calibration, target, image_set) for image_set in RELIABILITY_ROLES}
    lines = [
        figures.Curve(role, bins[s]["mean_probability"].tolist(), bins[s]["true_share"].tolist())
        for s, role in RELIABILITY_ROLES.items()
    ]
    if all(found.empty for found in bins.values()):
        return None
    error = formatted(e.results[target]["covid"].get("ece"), 4)
    return figures.agreement(
        e.name, f"Reliability of {e.name}, {target}: ECE {error}", "mean probability", lines=lines
    )


def pooled_bins(calibration: pd.DataFrame, target: str, image_set: str) -> pd.DataFrame:
    """The bins of a target and image set, the pixels of all seeds taken together."""
    rows = calibration[(calibration["target"] == target) & (calibration["image_set"] == image_set)]
    sums = rows[["bin", "pixels"]].assign(
        mean_probability=rows["mean_probability"] * rows["pixels"],
        true_share=rows["true_share"] * rows["pixels"],
    )
    sums = sums.groupby("bin").sum()
    return sums[["mean_probability", "true_share"]].div(sums["pixels"], axis=0)


def share_chart(inputs: Inputs) -> tuple[Experiment, figures.Chart] | None:
    """Infected share of the lung, predicted over true, of the best experiment that tells it."""
    for e in inputs.ranking("infection"):
        rows = e.first_seed("infection", "covid")  # without the columns where no lungs are known
        shares = rows.reindex(columns=["true_share", "predicted_share"]).dropna().astype(float)
        if len(shares):
            words = f"Infected share of the lung by {e.name} over the true one, {len(shares)} images"
            dots = list(shares.itertuples(index=False, name=None))
            return e, figures.agreement(e.name, words, "true share", dots=dots)
    return None
