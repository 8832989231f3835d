from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tasks.inference.predict
from models.metrics import Selection, confusion, dice
from tasks.common.raw import RawDataset, encode_mask
from tasks.inference.masks import (
    PLAIN,
    OperatingPoint,
    OperatingPoints,
    Recipe,
    Step,
    steps,
    to_masks,
)
from tasks.inference.predict import (
    THRESHOLDS,
    Case,
    _best_point,
    _Candidates,
    choose_points,
    dice_at_thresholds,
    predict_cases,
    predict_images,
)
from tasks.networks.device import set_up
from tasks.packed.reader import PackedSplit
from tasks.settings.params import Params
from tasks.settings.training import Target
from tasks.support.cli import InputError


class Darkness(nn.Module):
    """Predicts infection on dark pixels, with higher probability on the left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(1, -1, x.shape[-1])
        return (4 * (0.5 - x) + ramp).repeat(1, 2, 1, 1)


@pytest.fixture
def val(tiny_params: Params, tiny_packed: Path) -> PackedSplit:
    return PackedSplit(tiny_packed, "infection", "Val", ("infection", "lung"))


@pytest.fixture
def raw(tiny_packed: Path) -> RawDataset:
    return RawDataset(tiny_packed.parent / "raw")


COMPUTE = set_up(0, "fp32", 1)


class Small(nn.Module):
    """Predicts as `Darkness` does, but has memory for a few images only."""

    def __init__(self, fits: int, error: Exception) -> None:
        super().__init__()
        self._fits, self._error = fits, error
        self.asked: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(x))
        if len(x) > self._fits:
            raise self._error
        probabilities: torch.Tensor = Darkness()(x)
        return probabilities


@pytest.fixture
def many(val: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> PackedSplit:
    """Images for two batches, the second one smaller."""
    assert len(val) >= 5
    monkeypatch.setattr("tasks.inference.predict.BATCH", min(32, len(val) - 1))
    return val


SHORT = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"),
)


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("flip_average", [False, True])
def test_prediction_uses_smaller_batches_while_memory_is_short(
    many: PackedSplit, capsys: pytest.CaptureFixture[str], error: Exception, flip_average: bool
) -> None:
    whole = predict_images([Darkness()], many, COMPUTE, flip_average, "")
    expected = torch.stack([of_one.averaged for of_one in whole])
    network = Small(1, error)
    predicted = predict_images([network], many, COMPUTE, flip_average, "Val batches")
    found = torch.stack([of_one.averaged for of_one in predicted])
    assert torch.equal(found, expected)
    first = len(many) - 1
    assert f"Val batches: not enough memory for {first} images at a time; using {first // 2}" in (
        capsys.readouterr().out
    )
    # Later batches begin with the size that fitted.
    attempts = [asked for asked in network.asked if asked > 1]
    assert attempts == sorted(set(attempts), reverse=True)
    assert network.asked[len(attempts) :] == [1] * (len(many) * (1 + flip_average))


def test_too_little_memory_for_one_image_is_an_error(many: PackedSplit) -> None:
    with pytest.raises(InputError, match="best Val batches: not enough memory for a single image; lower"):
        list(predict_images([Small(0, MemoryError())], many, COMPUTE, False, "best Val batches"))


def test_other_errors_of_a_network_are_raised(many: PackedSplit) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(predict_images([Small(0, RuntimeError("shapes differ"))], many, COMPUTE, False, ""))


def test_masks_survive_a_png_round_trip(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((13, 7)) > 0.5
    (tmp_path / "m.png").write_bytes(encode_mask(mask))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image), mask)


def test_flip_average_is_symmetric(val: PackedSplit) -> None:
    found = list(predict_images([Darkness()], val, COMPUTE, True, ""))
    plain, averaged = (
        torch.stack([getattr(of_one, name) for of_one in found]) for name in ("plain", "averaged")
    )
    for alone in predict_images([Darkness()], val, COMPUTE, False, ""):
        assert alone.plain is alone.averaged
    images = val.images().float() / 255
    mirrored = torch.sigmoid(Darkness()(images.flip(-1))).flip(-1)
    torch.testing.assert_close(averaged, (plain + mirrored) / 2)
    torch.testing.assert_close(plain, torch.sigmoid(Darkness()(images)))
    assert not torch.allclose(averaged, plain)


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
    monkeypatch.setattr(tasks.inference.predict, "predict_cases", lambda *_: iter(cases))
    plan = tiny_params.plans["report1_bce-seed0"].model_copy(update={"selection": "balanced"})
    prediction = PLAIN.model_copy(update={"threshold": "val", "min_area": 4 / 1024})
    nothing: Any = None
    assert choose_points(nothing, plan, prediction, val, nothing, COMPUTE) == {
        "infection": OperatingPoint(0.5, 0.0)
    }


def case() -> Case:
    """A lung, an infection with a hole that extends beyond the lung, and a speck."""
    lung, infection = torch.zeros(20, 20), torch.zeros(20, 20)
    lung[2:18, 2:10] = 0.9
    infection[4:12, 4:12] = 0.8
    infection[7, 6] = 0.1
    infection[16, 5] = 0.6
    probabilities: dict[Target, torch.Tensor] = {"infection": infection, "lung": lung}
    return Case("id", "COVID-19", probabilities, probabilities, {}, None)


HALVES: OperatingPoints = {"infection": OperatingPoint(0.5, 0.0), "lung": OperatingPoint(0.5, 0.0)}


def test_each_step_from_probabilities_to_masks() -> None:
    plain = to_masks(case().probabilities, HALVES, PLAIN)["infection"]
    assert plain.sum() == 64 - 1 + 1
    assert (
        to_masks(case().probabilities, HALVES | {"infection": OperatingPoint(0.7, 0.0)}, PLAIN)[
            "infection"
        ].sum()
        == 63
    )
    within = to_masks(case().probabilities, HALVES, PLAIN.model_copy(update={"within_lungs": True}))[
        "infection"
    ]
    assert within.sum() == 8 * 6 - 1 + 1 and not within[:, 10:].any()
    small = to_masks(case().probabilities, HALVES, PLAIN.model_copy(update={"min_area": 2 / 400}))[
        "infection"
    ]
    assert small.sum() == 63 and not small[16, 5]
    assert (
        to_masks(case().probabilities, HALVES, PLAIN.model_copy(update={"fill_holes": True}))[
            "infection"
        ].sum()
        == 65
    )


def test_steps_are_the_enabled_ones() -> None:
    assert steps(PLAIN, HALVES) == {}
    some = PLAIN.model_copy(update={"fill_holes": True, "min_area": 0.01})
    assert list(steps(some, HALVES)) == ["plain", "small", "holes", "chosen"]
    assert list(steps(PLAIN, HALVES | {"lung": OperatingPoint(0.4, 0.0)})) == ["plain", "threshold", "chosen"]
    assert steps(some, HALVES | {"lung": OperatingPoint(0.4, 0.0)})["holes"] == Step(
        False, HALVES, PLAIN.model_copy(update={"fill_holes": True})
    )


def test_mirror_average_is_a_step_of_its_own() -> None:
    found = steps(PLAIN.model_copy(update={"flip_average": True}), HALVES)
    assert {name: step.averaged for name, step in found.items()} == {
        "plain": False,
        "flip": True,
        "chosen": True,
    }


@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 1.0])
def test_dice_at_each_threshold_of_constant_probabilities(value: float) -> None:
    probability = torch.full((6, 5), value)
    for reference in (torch.zeros(6, 5).bool(), torch.ones(6, 5).bool(), torch.eye(6, 5).bool()):
        each = [dice(confusion(probability >= float(t), reference)).item() for t in THRESHOLDS]
        assert dice_at_thresholds(probability.numpy(), reference.numpy(), THRESHOLDS).tolist() == each


def test_steps_reuse_common_masks() -> None:
    everything = PLAIN.model_copy(update={"within_lungs": True, "min_area": 2 / 400, "fill_holes": True})
    points = HALVES | {"infection": OperatingPoint(0.7, 0.0)}
    made: dict[Recipe, np.ndarray] = {}
    for _, at, prediction in steps(everything, points).values():
        shared = to_masks(case().probabilities, at, prediction, made)
        for target, mask in to_masks(case().probabilities, at, prediction).items():
            np.testing.assert_array_equal(shared[target], mask, strict=True)
    # Plain, small components removed, holes filled, all steps; infection also at 0.7 and within the lungs.
    assert sum(recipe.target == "lung" for recipe in made) == 4
    assert sum(recipe.target == "infection" for recipe in made) == 6
