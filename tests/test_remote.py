"""Dataset and results on S3, from a repository to its clones, with credentials from the environment only."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.settings.changes import with_changes
from tests.helpers import Repository
from tests.s3 import SECRET, S3Server


@pytest.fixture(scope="module", autouse=True)
def credentials(s3: S3Server) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def pushed(
    s3: S3Server,
    make_prepared_repository: Callable[[Path], Repository],
    tiny_params_text: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Repository:
    """A repository with results that are committed and pushed. It has one experiment, to be fast."""
    repository = make_prepared_repository(tmp_path_factory.mktemp("pushed") / "repository")
    params = with_changes(tiny_params_text, {}, ["report1_bce_iou"])
    (repository.folder / "params.yaml").write_text(params, encoding="utf-8")
    repository.run("dvc", "repro")
    repository.run("dvc", "remote", "add", "--default", "storage", f"s3://{s3.make_bucket()}/project")
    repository.commit("results and DVC remote")
    assert "files pushed" in repository.run("dvc", "push", "--run-cache")
    return repository


@pytest.fixture
def clone(pushed: Repository, tmp_path: Path) -> Repository:
    """A clone with an empty DVC cache."""
    pushed.run("git", "clone", "--quiet", str(pushed.folder), str(tmp_path / "clone"))
    return Repository(tmp_path / "clone")


def outputs(repository: Repository) -> dict[str, str]:
    """Return the hash of every file that a stage wrote."""
    folders = ("artifacts", "data", "reports")
    files = [path for name in folders for path in (repository.folder / name).rglob("*") if path.is_file()]
    return {
        path.relative_to(repository.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, repository.folder / "metrics.json"]
    }


def test_dvc_pull_downloads_every_output(pushed: Repository, clone: Repository) -> None:
    clone.run("dvc", "pull")
    assert outputs(clone) == outputs(pushed)
    assert clone.run("dvc", "status").strip() == "Data and pipelines are up to date."


def test_repro_pull_gets_all_results_without_running_a_stage(pushed: Repository, clone: Repository) -> None:
    output = clone.run("dvc", "repro", "--pull")
    assert "Running stage" not in output
    assert outputs(clone) == outputs(pushed)
    assert clone.run("git", "status", "--porcelain") == ""


def test_the_run_cache_restores_results_without_dvc_lock(pushed: Repository, clone: Repository) -> None:
    (clone.folder / "dvc.lock").unlink()
    output = clone.run("dvc", "repro", "--pull")
    # metrics.json is tracked by git and in no cache. The stage that writes it takes seconds.
    ran = [line for line in output.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'report':"]
    assert outputs(clone) == outputs(pushed)
    assert clone.run("git", "status", "--porcelain") == ""  # dvc.lock is identical again


def test_the_diff_of_the_dataset_fetches_only_the_manifest(clone: Repository) -> None:
    output = clone.run("cxr", "data", "diff", "HEAD", "main")
    assert output == "data/raw: the same 45 images in HEAD and main\n"
    shards = [p for p in clone.folder.rglob("*") if p.is_file() and p.read_bytes().startswith(b"PK")]
    assert not shards


def test_a_wrong_secret_is_refused(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    output = clone.run("dvc", "pull", fails=True)
    assert "ERROR: failed to connect to s3" in output and "Forbidden" in output
    output = clone.run("cxr", "data", "diff", "HEAD", fails=True)
    assert output == (
        "error: revision: 'HEAD': its data/raw/manifest.csv is not in the DVC cache, "
        "and could not read it from the DVC remote storage: Forbidden\n"
    )


def test_no_credentials_are_in_git(pushed: Repository) -> None:
    pushed.run("git", "grep", "--quiet", "s3://", "--", ".dvc")
    pushed.run("git", "grep", "--quiet", "--ignore-case", SECRET, "--", ".dvc", fails=True)
    assert not (pushed.folder / ".dvc" / "config.local").exists()
