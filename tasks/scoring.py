"""From probabilities and true masks to a row an image, and from the rows to named averages."""

from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from models.metrics import Confusion, confusion, dice, iou, mean_absolute_error
from tasks.raw import Kind, RawDataset

#: The named sets of Test images that scores are averaged over, by the classes they hold.
IMAGE_SETS = {"covid": ("COVID-19",), "all": ("COVID-19", "Non-COVID", "Normal")}

Metrics = dict[str, dict[str, dict[str, float]]]


class Prediction(NamedTuple):
    """What a predictor says of one image and target: probabilities (H, W) at the mask's own size."""

    target: Kind
    image_id: str
    image_class: str
    probability: Tensor
    truth: Tensor


def read_mask(raw: RawDataset, image_id: str, kind: Kind) -> Tensor:
    """Boolean (H, W) at the mask's own size."""
    return torch.from_numpy(raw.read(image_id, kind) > 0)


def score(prediction: Prediction, threshold: float) -> dict[str, object]:
    """One row of images.csv: counts and scores of one prediction."""
    counts = confusion(prediction.probability >= threshold, prediction.truth)
    return {
        "target": prediction.target,
        "id": prediction.image_id,
        "class": prediction.image_class,
        **{name: int(count) for name, count in counts._asdict().items()},
        "iou": float(iou(counts)),
        "dice": float(dice(counts)),
        "mae": float(mean_absolute_error(prediction.probability, prediction.truth)),
    }


def summarise(images: pd.DataFrame) -> Metrics:
    """target -> image set -> metric, from the rows of images.csv; sets without an image are left out.

    `iou`, `dice` and `mae` are means over the images, `iou_pooled` and `dice_pooled` count the pixels of
    all images as one; all in [0, 1]. `mae_255` is `mae` on the grey scale of 8 bit masks. An image whose
    true and predicted masks are both empty scores 1, and 0 where only one of them is.
    """
    metrics: Metrics = {}
    for target, of_target in images.groupby("target", sort=False):
        for name, classes in IMAGE_SETS.items():
            rows = of_target[of_target["class"].isin(classes)]
            if not rows.empty:
                metrics.setdefault(str(target), {})[name] = _averages(rows)
    return metrics


def _averages(rows: pd.DataFrame) -> dict[str, float]:
    pooled = Confusion(*(torch.tensor(rows[c].to_numpy()) for c in Confusion._fields)).pooled()
    mae = rows["mae"].mean()
    averages = {
        "iou": rows["iou"].mean(),
        "dice": rows["dice"].mean(),
        "iou_pooled": float(iou(pooled)),
        "dice_pooled": float(dice(pooled)),
        "mae": mae,
        "mae_255": 255 * mae,
    }
    return {"images": len(rows)} | {name: round(float(value), 6) for name, value in averages.items()}
