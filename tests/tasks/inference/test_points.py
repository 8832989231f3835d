from typing import Any

import numpy as np
import pytest
import torch

from models.metrics import Selection, confusion, dice
from tasks.common.raw import RawDataset
from tasks.inference.masks import (
    PLAIN,
    OperatingPoint,
    OperatingPoints,
    to_masks,
)
from tasks.inference.points import THRESHOLDS, _best_point, _Candidates, choose_points, dice_at_thresholds
from tasks.inference.predict import Case, predict_cases
from tasks.packed.reader import PackedSplit
from tasks.settings.params import Params
from tasks.settings.training import Target
from tests.tasks.inference.conftest import COMPUTE, Darkness, case


def test_dice_at_each_threshold_equals_explicit_thresholding() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(16, 16, generator=generator)
    probability[0, :3] = torch.tensor([0.05, 0.5, 0.95])  # exactly on thresholds
    for reference in (torch.rand(16, 16, generator=generator) > 0.7, torch.zeros(16, 16).bool()):
        each = [dice(confusion(probability >= float(t), reference)).item() for t in THRESHOLDS]
        np.testing.assert_allclose(
            dice_at_thresholds(probability.numpy(), reference.numpy(), THRESHOLDS), each
        )


VAL = PLAIN.model_copy(update={"threshold": "val", "presence": "val"})


def test_tied_thresholds_prefer_the_closest_to_a_half_and_the_lowest_presence() -> None:
    scores = np.zeros(len(THRESHOLDS))
    assert _best_point("balanced", VAL, [_Candidates(scores, 0.2, False)]) == OperatingPoint(0.5, 0.0)
    scores[[2, 12, 15]] = 1.0
    assert _best_point("balanced", VAL, [_Candidates(scores, 0.2, False)]) == OperatingPoint(0.65, 0.0)


def test_presence_separates_images_that_no_threshold_separates() -> None:
    """Every threshold marks a speck in the controls, and finds most of each lesion."""
    good, bad = np.full(len(THRESHOLDS), 0.8), np.zeros(len(THRESHOLDS))
    found = [_Candidates(good, mean, False) for mean in (0.05, 0.2, 0.3)]
    found += [_Candidates(bad, mean, True) for mean in (0.01, 0.02, 0.03)]
    point = _best_point("balanced", VAL, found)
    assert point.threshold == 0.5
    assert 0.03 < point.presence <= 0.05
    assert _best_point("lesions", VAL, found) == OperatingPoint(0.5, 0.0)
    fixed = VAL.model_copy(update={"presence": 0.0})
    assert _best_point("balanced", fixed, found) == OperatingPoint(0.5, 0.0)


def test_nothing_is_marked_below_the_presence() -> None:
    probabilities = case().probabilities
    mean = float(probabilities["infection"].double().mean())
    for presence, marked in ((mean, True), (mean * 1.001, False)):
        points = {"infection": OperatingPoint(0.5, presence), "lung": OperatingPoint(0.5, 0.0)}
        masks = to_masks(probabilities, points, PLAIN)
        assert masks["infection"].any() == marked
        assert masks["lung"].any()


STEPS = {
    "none": {},
    "small": {"min_area": 0.02},
    "all": {"min_area": 0.02, "fill_holes": True, "within_lungs": True, "flip_average": True},
}


@pytest.mark.parametrize("of", STEPS)
@pytest.mark.parametrize("selection", ["lesions", "balanced", "all"])
@pytest.mark.parametrize("presence", [0.0, "val"])
def test_point_is_the_best_on_val_after_all_steps(
    of: str,
    selection: Selection,
    presence: float | str,
    tiny_params: Params,
    val: PackedSplit,
    raw: RawDataset,
) -> None:
    update: dict[str, Any] = {"targets": ("infection", "lung"), "selection": selection}
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update=update)
    prediction = PLAIN.model_copy(update={"threshold": "val", "presence": presence, **STEPS[of]})
    chosen = choose_points([Darkness()], plan, prediction, val, raw, COMPUTE)
    cases = list(predict_cases([Darkness()], plan, val, raw, COMPUTE, prediction.flip_average, ""))
    assert {bool(c.references["infection"].any()) for c in cases} == {True, False}

    def score_at(points: OperatingPoints, target: Target) -> float:
        found: dict[bool, list[float]] = {True: [], False: []}
        for c in cases:
            mask = torch.from_numpy(to_masks(c.probabilities, points, prediction)[target])
            reference = c.references[target]
            found[bool(reference.any())].append(float(dice(confusion(mask, reference))))
        both = found[True] + found[False]
        if selection == "all" or target == "lung":
            return float(np.mean(both))
        lesions, controls = np.mean(found[True]), np.mean(found[False])
        return float(lesions if selection == "lesions" else (lesions + controls) / 2)

    for target in plan.targets:
        own, best = chosen[target], score_at(chosen, target)
        for threshold in THRESHOLDS:
            other = OperatingPoint(round(float(threshold), 2), own.presence)
            assert score_at(chosen | {target: other}, target) <= best + 1e-9
        assert score_at(chosen | {target: own._replace(presence=0.0)}, target) <= best + 1e-9
        if not presence:
            assert own.presence == 0


def test_configured_point_is_kept(tiny_params: Params, val: PackedSplit, raw: RawDataset) -> None:
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update={"targets": ("infection", "lung")})
    said = PLAIN.model_copy(update={"threshold": 0.3})
    expected = dict.fromkeys(("infection", "lung"), OperatingPoint(0.3, 0.0))
    assert choose_points([Darkness()], plan, said, val, raw, COMPUTE) == expected


def test_threshold_ignores_specks_that_are_removed_later(
    tiny_params: Params, val: PackedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On plain masks, only a threshold above 0.8 would leave the control unmarked."""
    lesion = torch.zeros(32, 32)
    lesion[8:20, 8:20] = 0.6
    speck = torch.zeros(32, 32)
    speck[3, 3:6] = 0.8
    cases = [
        Case("a", "COVID-19", {"infection": lesion}, {}, {"infection": lesion > 0}, None),
        Case("b", "Normal", {"infection": speck}, {}, {"infection": torch.zeros(32, 32).bool()}, None),
    ]
    monkeypatch.setattr("tasks.inference.points.predict_cases", lambda *_: iter(cases))
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update={"selection": "balanced"})
    prediction = PLAIN.model_copy(update={"threshold": "val", "min_area": 4 / 1024})
    nothing: Any = None
    assert choose_points(nothing, plan, prediction, val, nothing, COMPUTE) == {
        "infection": OperatingPoint(0.5, 0.0)
    }


@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 1.0])
def test_dice_at_each_threshold_of_constant_probabilities(value: float) -> None:
    probability = torch.full((6, 5), value)
    for reference in (torch.zeros(6, 5).bool(), torch.ones(6, 5).bool(), torch.eye(6, 5).bool()):
        each = [dice(confusion(probability >= float(t), reference)).item() for t in THRESHOLDS]
        assert dice_at_thresholds(probability.numpy(), reference.numpy(), THRESHOLDS).tolist() == each
