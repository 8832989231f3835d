import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tasks.bundles.parity import MOST_PROBABILITY, Parity, require_parity
from tasks.common.raw import encode_mask
from tasks.convert import convert
from tasks.support.cli import InputError
from tests.bundles import Pipeline
from tests.helpers import made

SAME = Parity(10, 1_000_000, 1e-6, 0, 0, True)


def convert_again(pipeline: Pipeline, name: str, out: Path, evaluated: Path | None = None) -> None:
    plan = pipeline.params.plans[name]
    experiment = pipeline.params.experiments[plan.experiment]
    convert(
        plan,
        experiment.prediction,
        pipeline.out("train", name) / "network",
        pipeline.folder / "data" / experiment.folder,
        evaluated or pipeline.out("evaluation", name),
        out,
    )


def test_all_predictions_are_the_same(pipeline: Pipeline) -> None:
    """Of networks on whole images and on predicted lungs."""
    for name in pipeline.params.stages.convert:
        parity = Parity(**json.loads((pipeline.out("converted", name) / "parity.json").read_text()))
        targets = len(pipeline.params.plans[name].targets)
        assert parity.images > 5
        assert parity.pixels == parity.images * targets * 64 * 64
        assert parity.evaluated_pixels == parity.onnx_pixels == 0
        assert 0 < parity.probability < MOST_PROBABILITY
        assert parity.same_setup


def test_converting_again_gives_the_same_bytes(pipeline: Pipeline, tmp_path: Path) -> None:
    convert_again(pipeline, "combined-seed0", tmp_path / "again")
    assert made(tmp_path / "again") == made(pipeline.out("converted", "combined-seed0"))


def test_masks_that_differ_from_those_of_evaluate_fail(pipeline: Pipeline, tmp_path: Path) -> None:
    evaluated = tmp_path / "evaluated"
    shutil.copytree(pipeline.out("evaluation", "combined-seed0"), evaluated)
    with zipfile.ZipFile(evaluated / "predictions.zip") as archive:
        names = archive.namelist()
    with zipfile.ZipFile(evaluated / "predictions.zip", "w") as archive:
        for name in names:
            archive.writestr(name, encode_mask(np.eye(64, dtype=bool)))
    with pytest.raises(InputError, match="mask pixels differ from those of the stage evaluate"):
        convert_again(pipeline, "combined-seed0", tmp_path / "out", evaluated)
    assert not (tmp_path / "out").exists()


def test_limits_of_parity() -> None:
    require_parity("a", SAME)
    require_parity("a", SAME._replace(onnx_pixels=10, evaluated_pixels=10))
    require_parity("a", SAME._replace(evaluated_pixels=900, same_setup=False))
    for changed in (
        {"probability": 2e-4},
        {"probability": float("nan")},
        {"onnx_pixels": 11},
        {"evaluated_pixels": 11},
        {"evaluated_pixels": 1001, "same_setup": False},
    ):
        with pytest.raises(InputError, match=r"^a: "):
            require_parity("a", SAME._replace(**changed))
