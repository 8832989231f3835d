"""A tiny dataset and a tiny repository: the real code on small images."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tasks.download import download
from tasks.preprocess import preprocess
from tasks.settings.changes import parse_assignment, with_changes
from tasks.settings.params import Params, parse_params
from tasks.sources.open import open_source
from tasks.sources.phantom import PhantomSource
from tasks.support.cpus import available_cores
from tasks.support.slots import VARIABLE
from tests.helpers import ROOT, Repository, made_once, make_repository_of, with_cache_of
from tests.s3 import s3

if TYPE_CHECKING:
    from tests.bundles import Pipeline

__all__ = ["s3"]  # also a fixture

# A shell lets its background jobs ignore SIGINT, which their children inherit. Tests send it to programs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tensors in tests are small, so waiting for other threads on busy cores would cost more than they save.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the stages that tests start
# Trainings that tests start without a flow do not wait for other programs of this machine.
os.environ[VARIABLE] = "tests"
# `make test` runs without an activated environment. A test that relies on one fails here too.
BIN = str(Path(sys.executable).parent)
os.environ["PATH"] = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != BIN)

#: The experiments of most tests: one loss with alpha, and one without.
EXPERIMENTS = ("report1_bce", "report1_bce_iou")

#: Changes of params.yaml that make the whole pipeline run in seconds.
TINY = (
    "epochs=2",
    "data.source=phantom://45?size=64",
    "training.image_size=32",
    "training.width=4",
    "training.depth=2",
    "training.threads=1",
    "training.learning_rate=0.01",
    "report.figures=[1, 2, 4]",
)


#: Test files that take minutes. They start first, because one that starts last would run alone at the end.
LONGEST = (
    "test_pool.py",
    "test_compose.py",
    "test_pipeline.py",
    "test_retrain.py",
    "test_serve.py",
    "test_ui.py",
    "test_prune.py",
    "test_new_data.py",
    "test_publish.py",
)


def pytest_xdist_auto_num_workers() -> int:
    return min(16, 2 * available_cores())


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr") == "soak":
        # Tests of such a class build on those before them.
        for item in items:
            if (parent := item.parent) and parent.name == "TestInOrder":
                siblings = [one for one in items if one.parent is parent]
                if any(one.get_closest_marker("soak") for one in siblings[siblings.index(item) :]):
                    item.add_marker("soak")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_params_text() -> str:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return with_changes(text, {assignment: parse_assignment(assignment) for assignment in TINY}, EXPERIMENTS)


@pytest.fixture(scope="session")
def tiny_params(tiny_params_text: str) -> Params:
    return parse_params(tiny_params_text)


@pytest.fixture(scope="session")
def tiny_packed(tiny_params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny phantoms, packed. The raw dataset is in the folder next to them."""
    folder = tmp_path_factory.mktemp("data")
    source = tiny_params.data.source
    download(open_source(source, Path()), folder / "raw", source)
    preprocess(folder / "raw", folder / "packed", tiny_params.training.image_size, 0.0)
    return folder / "packed"


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> "Pipeline":
    """The outputs of all stages up to two bundles. Tests must not change them."""
    from tests.bundles import Pipeline, read_params, run_pipeline

    params = read_params((ROOT / "params.yaml").read_text(encoding="utf-8"), TINY)
    with made_once(tmp_path_factory, "pipeline") as (folder, missing):
        if missing:
            run_pipeline(Pipeline(params, folder))
    return Pipeline(params, folder)


@pytest.fixture
def kaggle_folder(tmp_path: Path) -> Path:
    """Nine phantoms in a folder with Kaggle's layout, one per split and class."""
    root = tmp_path / "archive"
    source = PhantomSource("phantom://9?size=64")
    for name in source.names():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(source.read(name))
    return root


@pytest.fixture(scope="session")
def make_repository(tiny_params_text: str) -> Callable[[Path], Repository]:
    """Create a repository of the project's current files, with tiny params committed."""
    return make_repository_of(tiny_params_text)


@pytest.fixture(scope="session")
def finished_repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A repository in which `dvc repro` has run once. Tests must not change it."""
    with made_once(tmp_path_factory, "finished") as (folder, missing):
        if missing:
            make_repository(folder).run("dvc", "repro")
    return Repository(folder)


@pytest.fixture(scope="session")
def make_prepared_repository(
    make_repository: Callable[[Path], Repository], finished_repository: Repository
) -> Callable[[Path], Repository]:
    """Create a repository in which nothing has run, but whose DVC cache has the results of all stages.

    For tests that are not about the stages themselves, which take half a minute to run.
    """

    def make(folder: Path) -> Repository:
        return with_cache_of(finished_repository, make_repository(folder))

    return make
