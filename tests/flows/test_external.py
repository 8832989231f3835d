"""A flow that scores the experiments on images of another hospital."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.external import documented, write_external
from tests.helpers import Repository, finished, retrain


@pytest.mark.soak
def test_a_run_collects_a_dataset_beside_the_users_params_and_trains_nothing(
    make_prepared_repository: Callable[[Path], Repository], tmp_path: Path
) -> None:
    repository = make_prepared_repository(tmp_path / "repository")
    write_external("qata", repository.folder / "data" / "qata")
    entry = json.dumps(documented()["qata"] | {"source": "data/qata"})
    states = finished(retrain(repository, "--name", "elsewhere", "--set", f"external.qata={entry}"))
    external = {name for name in states if "_external@" in name}
    assert len(external) == 5
    assert {name for name, state in states.items() if state == "Completed"} == {
        "plan",
        "compare",
        "report",
        *external,
    }
    metrics = json.loads(repository.run("git", "show", "retrain/elsewhere:metrics.json"))
    assert set(metrics["report1_bce"]["external"]["qata"]["infection"]) == {"iou", "dice"}
