"""Numbers about a predicted image: areas, infected shares, uncertainty."""

from collections.abc import Mapping

import numpy as np

from tasks.inference.masks import Mask, infected_share
from tasks.prediction.pictures import Picture
from tasks.prediction.predictor import Prediction
from tasks.settings.training import Target

#: A cell of images.csv; None is an empty one.
Cell = str | int | float | None

COLUMNS = (
    "image",
    "source",
    "format",
    "width",
    "height",
    "column_spacing_mm",
    "row_spacing_mm",
    "lung_pixels",
    "infection_pixels",
    "lung_mm2",
    "infection_mm2",
    "infected_share",
    "infected_share_left",
    "infected_share_right",
    "uncertainty",
    "warnings",
)


def measure(picture: Picture, prediction: Prediction) -> dict[str, Cell]:
    """The columns of images.csv that depend on the picture and its prediction."""
    height, width = picture.shape
    areas = {target: int(mask.sum()) for target, mask in _areas(prediction).items()}
    rows, columns = picture.spacing or (None, None)
    pixel = rows * columns if rows and columns else None
    return {
        "format": picture.format,
        "width": width,
        "height": height,
        "column_spacing_mm": columns,
        "row_spacing_mm": rows,
        **{f"{target}_pixels": area for target, area in areas.items()},
        **{f"{target}_mm2": area * pixel for target, area in areas.items() if pixel},
        **_shares(prediction),
        "uncertainty": _uncertainty(prediction),
    }


def _areas(prediction: Prediction) -> Mapping[Target, Mask]:
    lungs: dict[Target, Mask] = {} if prediction.lungs is None else {"lung": prediction.lungs}
    return lungs | prediction.masks


def _shares(prediction: Prediction) -> dict[str, Cell]:
    """The infected share of both lungs, and of those on the image's left and right side.

    The sides meet at the middle of the lungs' bounding box. In the usual view, the patient's right lung is on
    the left side of the image.
    """
    lungs, infection = prediction.lungs, prediction.masks.get("infection")
    if lungs is None or infection is None or not lungs.any():
        return {}
    columns = np.flatnonzero(lungs.any(axis=0))
    middle = int(columns[0] + columns[-1] + 1) // 2
    return {
        "infected_share": infected_share(infection, lungs),
        "infected_share_left": infected_share(infection[:, :middle], lungs[:, :middle]),
        "infected_share_right": infected_share(infection[:, middle:], lungs[:, middle:]),
    }


def _uncertainty(prediction: Prediction) -> float | None:
    """Mean standard deviation of the probabilities over the networks, for infection if it is predicted."""
    spread = prediction.spread
    found = spread.get("infection", spread.get("lung"))
    return None if found is None else float(np.mean(found, dtype=np.float64))
