"""An external dataset from its files to the report, with DVC commands in a real repository."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.external import documented, write_external
from tests.helpers import Repository, made
from tests.test_pipeline import stages_run

Make = Callable[[Path], Repository]


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
