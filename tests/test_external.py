"""An external dataset from its files to the report, with DVC commands in a real repository."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.external import documented, write_external
from tests.helpers import Repository, made
from tests.test_pipeline import stages_run
from tests.test_structure import assert_exact_code, stages

Make = Callable[[Path], Repository]


@pytest.mark.soak
def test_an_external_dataset_is_scored_without_any_training(
    make_prepared_repository: Make, finished_repository: Repository, tmp_path: Path
) -> None:
    repository = make_prepared_repository(tmp_path / "repository")
    repository.run("dvc", "repro")
    before = repository.read("params.yaml")
    source = write_external("qata", tmp_path / "qata")
    entry = documented()["qata"] | {"source": str(source)}
    repository.set(f"external.qata={json.dumps(entry)}")
    assert "6 images with infection mask" in repository.run("cxr", "data", "look", "--external", "qata")
    ran = stages_run(repository.run("dvc", "repro"))
    collecting = {"download_external@qata", "preprocess_external@qata-32", "audit_external@qata"}
    scoring = {f"evaluate_external@qata-{name}-seed0" for name in ("report1_bce", "report1_bce_iou")}
    assert ran == {"plan", *collecting, *scoring, "compare", "report"}
    assert "Images of other hospitals" in repository.read("reports/index.html")
    assert (
        "iou" in json.loads(repository.read("metrics.json"))["report1_bce"]["external"]["qata"]["infection"]
    )
    assert "up to date" in repository.run("dvc", "status")

    for name in ("Images/covid_1.png", "Ground-truths/mask_covid_1.png"):
        (source / "Test Set" / name).unlink()
    ran = stages_run(repository.run("dvc", "repro", "--force", "--single-item", "download_external@qata"))
    assert ran == {"download_external@qata"}
    ran = stages_run(repository.run("dvc", "repro"))
    assert ran == {*collecting, *scoring, "compare", "report"} - {"download_external@qata"}

    (repository.folder / "params.yaml").write_text(before, encoding="utf-8")
    repository.run("dvc", "repro")
    for folder in ("reports", "artifacts/comparison"):
        assert made(repository.folder / folder) == made(finished_repository.folder / folder)


def test_the_stages_of_all_documented_datasets_are_declared(make_repository: Make, tmp_path: Path) -> None:
    """With experiments on whole images and on predicted lungs, of two image sizes."""
    repository = make_repository(tmp_path / "repository")
    repository.set(
        "experiments.plain={network: unet, loss: bce, targets: [lung]}",
        "experiments.second={network: unet, loss: bce, images: lungs/plain, targets: [infection]}",
        "experiments.larger={network: unet, loss: bce, targets: [infection, lung], image_size: 48}",
        "experiments.second.seeds=2",
        "experiments.second.prediction.ensemble=seeds",
        *(f"external.{name}={json.dumps(entry)}" for name, entry in documented().items()),
    )
    found = stages(repository.folder)
    external = {name for name in found if "_external@" in name}
    assert_exact_code({name: found[name] for name in external})
    scored = {name.partition("@")[2] for name in external if name.startswith("evaluate_external@")}
    on_lungs = {
        f"{name}-{e}-seed0" for name in ("montgomery", "shenzhen", "jsrt") for e in ("plain", "larger")
    }
    on_infection = {f"qata-{e}-seed0" for e in ("report1_bce", "report1_bce_iou", "second", "larger")}
    assert scored == on_lungs | on_infection | {"qata-second-seed1"}
    assert {name for name in external if name.startswith("ensemble_")} == {"ensemble_external@qata-second"}
    _, dependencies = found["evaluate_external@qata-second-seed0"]
    assert {"data/external/qata/lungs/plain", "data/external/qata/raw"} <= dependencies
    assert "preprocess_external@jsrt-48" in external and "preprocess_external@qata-32" in external
    trained = repository.run("dvc", "dag", "--dot", "train@second-seed0")
    assert "external" not in trained
    upstream = repository.run("dvc", "dag", "--dot", "compare")
    assert all(f'"{name}"' in upstream for name in external)
