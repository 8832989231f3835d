"""Datasets of one's own through all stages, in this process: with other masks and other classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.audit import audit
from tasks.baselines import baselines
from tasks.compare import compare
from tasks.download import download
from tasks.evaluate import evaluate
from tasks.plan import plan
from tasks.preprocess import preprocess
from tasks.report import report
from tasks.settings.params import Params
from tasks.sources.open import open_source
from tasks.support.checkpoints import FOLDER_VARIABLE
from tasks.support.cli import InputError
from tasks.train import train
from tests.conftest import TINY
from tests.own import PAIRS, TABLE, cases, encoded, write, write_pairs, write_table
from tests.params import changed

Layout = dict[str, Any]


def params_for(layout: Layout, classes: list[str]) -> Params:
    masks = [kind for kind in ("infection", "lung") if kind in layout]
    assignments = (
        *(change for change in TINY if not change.startswith("data.source")),
        "epochs=1",
        "data.source=x",
        f"data.layout={json.dumps(layout)}",
        f"training.half={masks[0]}",
        f"training.targets={json.dumps(masks)}",
        f"training.train_classes={json.dumps(classes)}",
        "experiments.one={network: unet, loss: dice, prediction: {fill_holes: true}}",
        "experiments.two={network: unet, loss: bce}",
    )
    return changed(*assignments, keep=("one", "two"))


def run(source: Path, params: Params, root: Path) -> tuple[dict[str, Any], str]:
    """The metrics and the page."""
    layout = params.data.layout
    assert layout
    files = open_source(str(source), Path(), own_layout=True)
    plan(params, root / "plans")
    download(files, root / "raw", "here", layout=layout)
    preprocess(root / "raw", root / "packed", params.training.image_size, 0.0)
    audit(root / "raw", root / "packed", root / "audit", params.audit, params.data.published)
    baselines(root / "packed" / "images.csv", root / "raw", root / "baselines" / layout.half, layout.half)
    for name, one in params.plans.items():
        train(one, root / "packed", root / "trained" / name)
        prediction, network = (
            params.experiments[one.experiment].prediction,
            root / "trained" / name / "network",
        )
        evaluate(one, prediction, network, root / "packed", root / "raw", root / "evaluated" / name)
    names = ("plans", "trained", "evaluated", "baselines", "audit", "packed", "raw")
    compare(params, out=root / "comparison", **{name: root / name for name in names})
    report(root / "comparison", root / "reports", root / "metrics.json")
    return json.loads((root / "metrics.json").read_text()), (root / "reports" / "index.html").read_text(
        "utf-8"
    )


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "checkpoints"))


BOTH: Layout = {
    "images": "{class}/{name}.jpg",
    "lung": "{class}/{name}_lung.png",
    "infection": "{class}/{name}_infection.png",
    "splits": {"val": 0.3, "test": 0.3},
    "classes": {"covid": "COVID-19"},
}


def write_both(folder: Path) -> Path:
    """X-rays with both masks. `BOTH` does not name the class of those that are not COVID-19."""
    files = {}
    for case in cases(3):
        name = f"{'covid' if case.image_class == 'COVID-19' else 'other'}/{case.number}"
        files[f"{name}.jpg"] = encoded(case.image, "JPEG")
        files[f"{name}_lung.png"] = encoded(case.lung)
        files[f"{name}_infection.png"] = encoded((case.infection > 0).astype(np.uint8))
    return write(files, folder)


OTHER_CLASSES = TABLE | {"classes": {"1": "Non-COVID", "0": "Normal"}}
Write = Callable[[Path], Path]
KINDS: dict[str, tuple[Write, Layout, list[str], set[str], str]] = {
    "infection of other classes": (
        write_table,
        OTHER_CLASSES,
        ["Non-COVID", "Normal"],
        {"normal", "controls"},
        "On 12 control Test images (Non-COVID and Normal) it reaches",
    ),
    "no controls": (write_both, BOTH, ["COVID-19"], {"covid"}, "On 3 COVID-19 Test images it reaches"),
    "one Val image": (
        lambda folder: write_pairs(folder, each=1),
        PAIRS,
        ["Normal"],
        {"normal"},
        "On 3 Normal Test images it reaches",
    ),
}


@pytest.mark.parametrize(("write_files", "layout", "classes", "sets", "said"), KINDS.values(), ids=KINDS)
def test_every_dataset_gives_a_report(
    tmp_path: Path, write_files: Write, layout: Layout, classes: list[str], sets: set[str], said: str
) -> None:
    metrics, page = run(write_files(tmp_path / "own"), params_for(layout, classes), tmp_path)
    for target in ("infection", "lung"):
        found = metrics["one"]["test"].get(target)
        assert (found is not None) == (target in layout)
        if found:
            assert found.keys() == sets
            assert any({"iou", "dice"} <= scores.keys() for scores in found.values())
    assert said in page.replace("\N{NON-BREAKING HYPHEN}", "-")
    assert ("the whole lung" in page.partition('id="reading"')[0]) == ({"infection", "lung"} <= layout.keys())


def test_masks_without_any_mark_fail_before_the_training(tmp_path: Path) -> None:
    source = write_table(tmp_path / "own")
    shutil.rmtree(source / "lesions")
    write(
        {f"lesions/{case.number}.bmp": encoded(np.zeros((64, 64), np.uint8), "BMP") for case in cases(4)},
        source,
    )
    with pytest.raises(InputError, match="no Test image of the infection half has infection in its mask"):
        run(source, params_for(TABLE, ["COVID-19", "Normal"]), tmp_path)
    assert not (tmp_path / "trained").exists()
