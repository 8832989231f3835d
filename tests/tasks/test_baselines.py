from pathlib import Path

import pandas as pd
import pytest
import torch

from tasks.baselines import PREDICTORS, baselines
from tasks.common.raw import RawDataset
from tasks.inference.predict import read_mask
from tasks.scoring.images import Calibration, score


def test_predictors_are_scored_as_probabilities_0_and_1(tiny_packed: Path, tmp_path: Path) -> None:
    raw = tiny_packed.parent / "raw"
    baselines(tiny_packed / "images.csv", raw, tmp_path / "out", "infection")
    rows = pd.read_csv(tmp_path / "out" / "images.csv").set_index(["predictor", "target", "id"])
    calibrations = {name: Calibration() for name in PREDICTORS}
    for (name, target, image_id), row in rows.iterrows():
        lung, reference = (read_mask(RawDataset(raw), image_id, kind) for kind in ("lung", target))
        of_all = {"all_background": torch.zeros(lung.shape), "all_foreground": torch.ones(lung.shape)}
        probability = of_all.get(name, lung.float())
        if row["split"] == "Test":
            calibrations[name].add(target, row["class"], probability, reference)
        for metric, expected in score(probability > 0, probability, reference).items():
            shown = pytest.approx(float(f"{expected:.8g}"), rel=0, abs=0, nan_ok=True)
            assert row[metric] == shown, (name, target, image_id, metric)
    assert set(rows["split"]) == {"Val", "Test"}
    assert ("whole_lung", "lung") not in rows.index.droplevel("id")
    table = pd.read_csv(tmp_path / "out" / "calibration.csv").set_index("predictor")
    for name, calibration in calibrations.items():
        found = table.loc[name].reset_index(drop=True)
        pd.testing.assert_frame_equal(found, calibration.table(), rtol=1e-7, check_dtype=False)
