"""Which of several ready stages starts first, and progress bars."""

import pytest

from flows.engine.order import priority_of, progress_bar
from flows.engine.pipeline import Pipeline
from tasks.settings.changes import read_preset, with_changes
from tasks.settings.params import Params, load_params, parse_params
from tasks.support.events import Event
from tests.helpers import ROOT, trainings_of


def pipeline_of(params: Params) -> Pipeline:
    """The stage graph of dvc.yaml for some experiments."""
    upstream: dict[str, set[str]] = {"plan": set(), "download": set(), "preprocess": {"download"}}
    upstream |= {"audit": {"plan", "preprocess"}, "baselines": {"preprocess"}}
    for name, plan in params.plans.items():
        lungs = params.experiments[plan.experiment].lungs_from
        upstream[f"train@{name}"] = {"plan", "audit", f"lungs@{lungs}" if lungs else "preprocess"}
        upstream[f"evaluate@{name}"] = {f"train@{name}"}
    upstream |= {f"lungs@{name}": {f"train@{stage.training}"} for name, stage in params.stages.lungs.items()}
    upstream["compare"] = {"audit", "baselines", *(f"evaluate@{name}" for name in params.plans)}
    upstream["report"] = {"compare"}
    return Pipeline(upstream, list(upstream), frozenset())


def in_order(params: Params, *words: str) -> list[str]:
    pipeline = pipeline_of(params)
    priority = priority_of(pipeline, trainings_of(params))
    return [stage for stage in sorted(pipeline.upstream, key=priority) if stage.startswith(words)]


def test_dependencies_of_other_stages_start_first_and_then_the_longest_training() -> None:
    params = load_params(ROOT / "params.yaml")
    trainings = in_order(params, "train@")
    assert trainings[0] == "train@two_step_lungs-seed0"  # another training depends on its predictions
    # 100 epochs of one class, 30 epochs of three, 100 epochs of three with a quarter of the pixels.
    ranked = [
        trainings.index(f"train@{name}") for name in ("report1_bce-seed0", "report2-seed0", "combined-seed0")
    ]
    assert ranked == sorted(ranked)
    assert in_order(params, "audit", "baselines", "report") == ["audit", "baselines", "report"]


def test_the_demo_keeps_all_cores_busy_until_its_end() -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    preset = read_preset(ROOT / "presets" / "demo.yaml")
    params = parse_params(with_changes(text, {"demo": preset}, preset.only))
    assert in_order(params, "train@") == [
        "train@combined-seed0",
        "train@report2-seed0",
        "train@report1_bce-seed0",
        "train@report1_bce_iou-seed0",
    ]


def test_progress_updates_are_throttled_but_the_last_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, str]] = []

    def create(percent: float, description: str) -> str:
        shown.append((percent, description))
        return "artifact"

    def update(artifact: str, percent: float, description: str) -> None:
        assert artifact == "artifact"
        shown.append((percent, description))

    monkeypatch.setattr("flows.engine.order.create_progress_artifact", create)
    monkeypatch.setattr("flows.engine.order.update_progress_artifact", update)
    monkeypatch.setattr("flows.engine.order.PROGRESS_EVERY", 3600)
    show = progress_bar("train@report1_bce")
    for epoch in range(1, 51):
        show(Event("now", "epochs of report1_bce", epoch, 50, epoch / 50, {"train_loss": 0.1}))
    assert shown == [
        (2.0, "train@report1_bce: epochs of report1_bce: 1 of 50, train_loss 0.1000"),
        (100.0, "train@report1_bce: epochs of report1_bce: 50 of 50, train_loss 0.1000"),
    ]
