import numpy as np

from tasks.inference.masks import (
    PLAIN,
    OperatingPoint,
    OperatingPoints,
    Recipe,
    Step,
    steps,
    to_masks,
)
from tests.tasks.inference.conftest import case

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
