import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import tasks.common.cores
from models.metrics import confusion, dice, iou
from tasks.common.raw import RawDataset, Split
from tasks.evaluate import evaluate
from tasks.inference.masks import PLAIN, OperatingPoint, OperatingPoints, steps, to_masks
from tasks.inference.predict import predict_cases
from tasks.networks.device import set_up
from tasks.networks.network import load_network
from tasks.packed.reader import PackedSplit
from tasks.scoring.images import score
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.train import train
from tests.helpers import made

EVERY_STEP = {"flip_average": True, "within_lungs": True, "min_area": 0.01, "fill_holes": True}
PREDICTION = PLAIN.model_copy(update={"threshold": "val", "presence": "val", **EVERY_STEP})


@pytest.fixture(scope="module")
def plan(tiny_params: Params) -> Plan:
    return tiny_params.plans["report1_bce-seed0"].model_copy(
        update={"targets": ("infection", "lung"), "epochs": 4}
    )


@pytest.fixture(scope="module")
def trained(plan: Plan, tiny_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "both"
    train(plan, tiny_packed, out)
    return out / "network"


@pytest.fixture(scope="module")
def evaluated(plan: Plan, trained: Path, tiny_packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "both"
    evaluate(plan, PREDICTION, trained, tiny_packed, tiny_packed.parent / "raw", out)
    return out


@pytest.mark.parametrize("cores", [1, 4])
def test_number_of_cores_does_not_change_the_bytes(
    cores: int,
    plan: Plan,
    trained: Path,
    evaluated: Path,
    tiny_packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.common.cores, "available_cores", lambda: cores)
    evaluate(plan, PREDICTION, trained, tiny_packed, tiny_packed.parent / "raw", tmp_path / "again")
    assert made(tmp_path / "again") == made(evaluated)


def test_tables_equal_those_of_images_scored_one_by_one(
    plan: Plan, trained: Path, evaluated: Path, tiny_packed: Path
) -> None:
    """Compute and score each mask separately, with tensors."""
    compute = set_up(plan.seed, plan.precision, plan.threads)
    network = load_network(trained, compute)
    settings = json.loads((evaluated / "settings.json").read_text())
    points: OperatingPoints = {
        target: OperatingPoint(threshold, settings["presence"][target])
        for target, threshold in settings["thresholds"].items()
    }
    rows = pd.read_csv(evaluated / "images.csv").set_index(["split", "target", "id"])
    stepped = pd.read_csv(evaluated / "steps.csv").set_index(["split", "step", "target", "id"])
    raw = RawDataset(tiny_packed.parent / "raw")
    splits: tuple[Split, ...] = ("Val", "Test")
    cases = [
        (split, case)
        for split in splits
        for case in predict_cases(
            [network], plan, PackedSplit(tiny_packed, plan.half, split), raw, compute, True, ""
        )
    ]
    assert len(rows) == 2 * len(cases)
    for split, case in cases:
        masks = to_masks(case.probabilities, points, PREDICTION)
        for target, reference in case.references.items():
            expected = score(torch.from_numpy(masks[target]), case.probabilities[target], reference)
            found = rows.loc[(split, target, case.image_id), list(expected)].to_dict()
            shown = {name: float(f"{value:.8g}") for name, value in expected.items()}
            assert found == pytest.approx(shown, rel=0, abs=0, nan_ok=True)
        for step, (averaged, at, prediction) in steps(PREDICTION, points).items():
            masks = to_masks(case.probabilities if averaged else case.plain, at, prediction)
            for target, reference in case.references.items():
                counts = confusion(torch.from_numpy(masks[target]), reference)
                found = stepped.loc[(split, step, target, case.image_id), ["iou", "dice"]]
                assert list(found) == [float(f"{metric(counts).item():.8g}") for metric in (iou, dice)]
