import json
from pathlib import Path

from tasks.plan import plan
from tasks.settings.experiments import Plan
from tasks.settings.params import Params
from tasks.settings.prediction import Prediction


def test_writes_one_file_per_training_and_per_experiment(tiny_params: Params, tmp_path: Path) -> None:
    plan(tiny_params, tmp_path / "plans")
    names = [f"{name}.json" for name in tiny_params.plans]
    names += [f"{name}.prediction.json" for name in tiny_params.experiments] + ["folds.csv"]
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == sorted(names)
    for name, training in tiny_params.plans.items():
        text = (tmp_path / "plans" / f"{name}.json").read_text()
        assert Plan.from_json(text) == training
        assert "prediction" not in json.loads(text)
    for name, experiment in tiny_params.experiments.items():
        prediction = (tmp_path / "plans" / f"{name}.prediction.json").read_text()
        assert Prediction.from_json(prediction) == experiment.prediction


def test_second_run_replaces_the_files_of_the_first(tiny_params: Params, tmp_path: Path) -> None:
    plan(tiny_params, tmp_path / "plans")
    before = {path.name: path.read_bytes() for path in (tmp_path / "plans").iterdir()}
    (tmp_path / "plans" / "gone.json").write_text("{}")
    plan(tiny_params, tmp_path / "plans")
    assert {path.name: path.read_bytes() for path in (tmp_path / "plans").iterdir()} == before
