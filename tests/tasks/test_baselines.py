import json
from pathlib import Path

import pandas as pd
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
        calibrations[name].add(target, row["class"], probability, reference)
        for metric, expected in score(probability > 0, probability, reference).items():
            assert row[metric] == float(f"{expected:.8g}"), (name, target, image_id, metric)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics) == list(PREDICTORS)
    assert "lung" not in metrics["whole_lung"]
    for name, calibration in calibrations.items():
        for target, sets in metrics[name].items():
            for image_set, scores in sets.items():
                assert scores["ece"] == round(calibration.error(target, image_set), 6)
