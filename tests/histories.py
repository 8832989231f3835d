"""Handmade training histories."""

import pandas as pd


def history(
    *marked: float, dice: list[float] | None = None, loss: list[float] | None = None, **columns: list[float]
) -> pd.DataFrame:
    """One epoch per marked share. By default the loss falls and the last epoch is the best."""
    count = len(marked)
    return pd.DataFrame(
        {
            "epoch": range(1, count + 1),
            "train_loss": loss or [1 / epoch for epoch in range(1, count + 1)],
            "val_score": dice or [epoch / count for epoch in range(1, count + 1)],
            "val_marked": marked,
            **columns,
        }
    )


def of_two(infection: list[float], lung: list[float], dice: list[float] | None = None) -> pd.DataFrame:
    """A history of two targets, from the marked shares of each."""
    means = [(one + other) / 2 for one, other in zip(infection, lung, strict=True)]
    return history(*means, dice=dice, val_marked_infection=infection, val_marked_lung=lung)


FINE, NONE, ALL = 0.1, 0.0, 1.0
