"""What a sweep tries: keys, values, ranges, names and entries of trials."""

from typing import Any

import pytest

from tasks.settings.changes import with_changes
from tasks.settings.params import Params, parse_params
from tasks.settings.reading import parse_mapping
from tasks.support.cli import InputError
from tasks.sweep.space import Base, Key, Method, Settings, corners, draw, grid, parse_keys, trials_of
from tests.params import TEXT

OURS = "report1_bce_iou"


def key(text: str, method: Method = "random") -> Key:
    (found,) = parse_keys([text], method)
    return found


def base(*keys: str, **more: Any) -> Base:
    return Base.of(parse_mapping(TEXT, "params.yaml") | more, parse_keys(keys, "random"))


def swept(found: Base, *points: tuple[str, Settings], seeds: int | None = None) -> Params:
    """The params.yaml of a sweep with these points."""
    trials = trials_of(found, points, seeds)
    text = with_changes(TEXT, {"sweep": found.changes(trials)}, [trial.name for trial in trials])
    return parse_params(text)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("alpha=0,0.25,1", "alpha", (0, 0.25, 1)),
        ("training.learning_rate=1e-3,3e-3", "learning_rate", (0.001, 0.003)),
        ("augment.flip=0,0.5", "augment.flip", (0, 0.5)),
        ("losses.focal.gamma=1,2", "losses.focal.gamma", (1, 2)),
        ("prediction.threshold=val,0.5", "prediction.threshold", ("val", 0.5)),
        ("loss=bce,dice", "loss", ("bce", "dice")),
        ("deep_supervision=true,false", "deep_supervision", (True, False)),
        (
            "train_classes=[COVID-19],[COVID-19, Normal]",
            "train_classes",
            (["COVID-19"], ["COVID-19", "Normal"]),
        ),
    ],
)
def test_values_are_listed_as_yaml(text: str, name: str, values: tuple[Any, ...]) -> None:
    assert key(text, "grid") == Key(name, values)


@pytest.mark.parametrize(
    ("text", "low", "high", "scale", "whole"),
    [
        ("alpha=0..1", 0, 1, "linear", False),
        ("learning_rate=1e-4..1e-2", 1e-4, 1e-2, "log", False),
        ("learning_rate=linear:1e-4..1e-2", 1e-4, 1e-2, "linear", False),
        ("learning_rate=0.001..0.005", 0.001, 0.005, "linear", False),
        ("width=8..64", 8, 64, "linear", True),
        ("width=log:8..64", 8, 64, "log", True),
        ("prediction.threshold=0.1..0.9", 0.1, 0.9, "linear", False),
    ],
)
def test_a_range_is_logarithmic_if_it_is_wide(
    text: str, low: float, high: float, scale: str, whole: bool
) -> None:
    assert key(text) == Key(text.partition("=")[0], (), low, high, scale, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("alhpa=0,1", "alhpa: unknown key of an experiment (did you mean alpha?)"),
        ("augment.filp=0,1", "augment.filp: unknown key of an experiment (did you mean flip?)"),
        (
            "data.source=a,b",
            "data.source: unknown key of an experiment; the keys here are accumulate, alpha, ",
        ),
        ("losses.focal=1", "losses.focal: is a section; name one of its keys, such as augment.flip"),
        ("seeds=1,2", "seeds: cannot be swept: the number of seeds is given by --seeds"),
        (
            "targets=[lung],[infection]",
            "targets: cannot be swept: trials with other targets have other scores",
        ),
        ("alpha", "alpha: expected KEY=VALUE,VALUE,... or KEY=LOW..HIGH, such as alpha=0,0.5,1"),
        ("alpha=", "alpha=: expected KEY=VALUE,VALUE,... or KEY=LOW..HIGH, such as alpha=0,0.5,1"),
        ("alpha=[", "alpha=[: the values are not valid YAML"),
        ("alpha=2026-02-31", "alpha=2026-02-31: the values are not valid YAML"),
        ("alpha=2026-02-01", "alpha=2026-02-01: the values must be numbers, words or lists of these"),
        ("alpha=a: 1", "alpha=a: 1: a value is a mapping; sweep its keys one by one"),
        ("alpha=1,1.0", "alpha=1,1.0: a value is listed twice"),
        ("alpha=1..0", "alpha=1..0: 1 is not below 0"),
        ("alpha=log:0..1", "alpha=log:0..1: a logarithmic range must start above 0"),
        ("alpha=1-..2", "alpha=1-..2: 1-..2 is not a range of numbers"),
        ("epochs=1.5..3", "epochs=1.5..3: epochs takes whole numbers"),
        ("loss=1..2", "loss=1..2: loss is not a number; list its values"),
    ],
)
def test_a_key_that_cannot_be_swept_is_refused_in_one_line(text: str, line: str) -> None:
    with pytest.raises(InputError) as refused:
        key(text)
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_a_range_is_not_a_grid_and_a_key_is_given_once() -> None:
    with pytest.raises(InputError, match=r"^alpha=0\.\.1: a range needs --random N or --optuna N; or list"):
        key("alpha=0..1", "grid")
    with pytest.raises(InputError, match=r"^alpha: this key is given twice$"):
        parse_keys(["alpha=0", "training.alpha=1"], "grid")
    with pytest.raises(InputError, match=r"^nothing to sweep; name a key"):
        parse_keys([], "grid")


def test_a_grid_has_every_combination() -> None:
    keys = parse_keys(["alpha=0,1", "width=8,16"], "grid")
    assert [tuple(point.values()) for point in grid(keys)] == [(0, 8), (0, 16), (1, 8), (1, 16)]


def test_draws_repeat_start_alike_and_stay_in_the_range() -> None:
    keys = parse_keys(["learning_rate=1e-4..1e-2", "width=8..9", "loss=bce,dice"], "random")
    many = draw(keys, 60, seed=1)
    assert draw(keys, 7, seed=1) == many[:7]
    assert draw(keys, 7, seed=2) != many[:7]
    assert all(1e-4 <= point["learning_rate"] <= 1e-2 for point in many)
    assert {point["width"] for point in many} == {8, 9}
    assert {point["loss"] for point in many} == {"bce", "dice"}
    below = sum(point["learning_rate"] < 1e-3 for point in many)  # half of them, on a logarithmic scale
    assert 18 < below < 42
    assert all(float(f"{point['learning_rate']:.3g}") == point["learning_rate"] for point in many)


def test_no_point_is_drawn_twice() -> None:
    points = draw(parse_keys(["width=8..10"], "random"), 9, seed=0)
    assert sorted(point["width"] for point in points) == [8, 9, 10]


def test_corners_have_every_value_and_both_ends() -> None:
    keys = parse_keys(["alpha=0..1", "loss=bce,dice,focal"], "optuna")
    assert corners(keys) == [
        {"alpha": 0, "loss": "bce"},
        {"alpha": 1, "loss": "dice"},
        {"alpha": 1, "loss": "focal"},
    ]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"alpha": 0.25}, f"{OURS}-alpha-0_25"),
        ({"alpha": 0}, f"{OURS}-alpha-0"),
        ({"alpha": 0.0}, f"{OURS}-alpha-0"),
        ({"learning_rate": 1e-5}, f"{OURS}-learning_rate-1e-05"),
        ({"width": 8, "augment.flip": 0.5}, f"{OURS}-augment_flip-0_5-width-8"),
        ({"augment.flip": 0.5, "width": 8}, f"{OURS}-augment_flip-0_5-width-8"),
        ({"alpha": 0.5}, OURS),  # the experiment's own value
        ({"alpha": 0.25, "learning_rate": 0.001}, f"{OURS}-alpha-0_25"),
        ({"deep_supervision": True}, f"{OURS}-deep_supervision-true"),
        ({"train_classes": ["COVID-19", "Normal"]}, f"{OURS}-train_classes-97ecbcea"),
    ],
)
def test_a_name_says_what_differs_from_the_experiment(settings: Settings, name: str) -> None:
    assert base("alpha=0").trial(OURS, settings, None).name == name


def test_long_names_are_shortened_and_stay_different() -> None:
    names = {
        base("alpha=0")
        .trial(OURS, {f"augment.{name}": 0.123456 for name in ("flip", "scale", "elastic", last)}, None)
        .name
        for last in ("noise", "gamma")
    }
    assert len(names) == 2
    assert max(map(len, names)) < 30


def test_trials_become_experiments_that_differ_in_their_settings_only() -> None:
    points = [(OURS, {"alpha": value, "augment.flip": flip}) for value in (0, 0.5) for flip in (0, 0.5)]
    params = swept(base("alpha=0", "augment.flip=0"), *points, seeds=2)
    before = parse_params(TEXT).experiments[OURS]
    assert len(params.experiments) == 4
    assert len(params.plans) == 8
    assert {experiment.seeds for experiment in params.experiments.values()} == {2}
    found = params.experiments[f"{OURS}-alpha-0-augment_flip-0_5"]
    assert (found.alpha, found.augment.flip) == (0, 0.5)
    same = {"alpha": 0.5, "augment": before.augment, "seeds": 1}
    assert found.model_copy(update=same) == before
    # The network of the experiment itself is the one that a retraining makes, to the byte.
    own, theirs = params.plans[f"{OURS}-seed0"], parse_params(TEXT).plans[f"{OURS}-seed0"]
    assert own.to_json() == theirs.to_json()


def test_constants_of_losses_and_predictions_are_swept_for_one_experiment() -> None:
    point = {"losses.focal.gamma": 3.0, "prediction.min_area": 0.001}
    params = swept(base("losses.focal.gamma=3"), ("report2_focal", point))
    (plan,) = params.plans.values()
    assert plan.loss_options == {"gamma": 3.0, "balance": 0.75}
    (experiment,) = params.experiments.values()
    assert (experiment.prediction.min_area, experiment.prediction.threshold) == (0.001, "val")


def test_what_predicts_the_lungs_is_kept() -> None:
    params = swept(base("width=8"), ("two_step_infection", {"width": 8}))
    assert list(params.experiments) == ["two_step_lungs", "two_step_infection-width-8"]
    assert params.experiments["two_step_lungs"].width == 64


def test_a_value_at_the_top_level_gives_way_where_it_is_swept() -> None:
    found = base("epochs=1,2", epochs=7, alpha=0.3)
    assert found.value(OURS, "epochs") == 7
    points = [("two_step_infection", {"epochs": value}) for value in (2, 7)]
    text = with_changes(TEXT, {"a": {"epochs": 7, "alpha": 0.3}})
    trials = trials_of(found, points, None)
    params = parse_params(
        with_changes(text, {"sweep": found.changes(trials)}, [trial.name for trial in trials])
    )
    assert {name: each.epochs for name, each in params.experiments.items()} == {
        "two_step_lungs": 7,
        "two_step_infection-epochs-2": 2,
        "two_step_infection": 7,
    }
    assert params.alpha == 0.3
    assert params.experiments["two_step_lungs"].alpha == 0.3


def test_too_many_trials_and_taken_names_are_refused() -> None:
    points = [(OURS, {"epochs": number}) for number in range(1, 102)]
    with pytest.raises(InputError, match=r"^these are 101 trials, more than 100; use fewer values"):
        trials_of(base("epochs=1"), points, None)
    raw = parse_mapping(TEXT, "params.yaml")
    raw["experiments"][f"{OURS}-alpha-0"] = raw["experiments"][OURS]
    with pytest.raises(InputError, match=rf"^experiments: {OURS}-alpha-0 is also the name of a trial"):
        trials_of(Base.of(raw, []), [(OURS, {"alpha": 0})], None)
