from tasks.comparison.document import Bounds, Difference
from tasks.comparison.findings import lead


def difference(second: str, value: float, winner: str | None) -> Difference:
    return Difference(
        metric="iou",
        first="a",
        second=second,
        images=9,
        value=value,
        interval=Bounds(low=value - 0.05, high=value + 0.05),
        winner=winner,
    )


def test_lead_lists_beaten_and_level_experiments() -> None:
    near, far, further = difference("b", 0.01, None), difference("c", 0.1, "a"), difference("d", 0.2, "a")
    found = lead(["a", "b", "c", "d"], [further, far, near])
    assert found
    assert (found.best, found.images, found.level, found.beaten) == ("a", 9, ("b",), ("c", "d"))
    assert found.nearest == far


def test_single_experiment_has_no_lead() -> None:
    assert lead(["a"], []) is None
    assert lead([], []) is None
