"""What `cxr prune` removes and keeps, in a real repository with the results of two runs."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.prune import find, remove
from flows.repository.checkout import checked_out
from flows.repository.git import commit, environment
from flows.repository.publish import RESULTS, TRAILER
from tests.helpers import Repository

#: Everything counts as old, and only the latest result is kept.
ALL_BUT_LAST = ("prune", "--keep", "0", "--keep-last", "1")


@pytest.fixture(scope="module")
def original(
    make_prepared_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """A repository with the results `old`, of stages that ran, and `kept`, from the DVC cache."""
    repository = make_prepared_repository(tmp_path_factory.mktemp("prune") / "repository")
    add_result(repository, "old", "report.figures=[1]")
    add_result(repository, "kept", "alpha=0.5")
    return repository


def add_result(repository: Repository, name: str, assignment: str) -> None:
    """Create the result of a run, without Prefect."""
    repository.run("git", "checkout", "--quiet", "-b", f"retrain/{name}", "main")
    repository.set(assignment)
    commit(repository.folder, f"Params of {name}\n\n{TRAILER}: {name}", *RESULTS)
    repository.run("dvc", "repro")
    commit(repository.folder, f"Retrain {name}\n\nchanged\n\n{TRAILER}: {name}", *RESULTS)
    report = repository.folder / "runs" / name
    shutil.copytree(repository.folder / "reports", report)
    shutil.copyfile(repository.folder / "metrics.json", report / "metrics.json")
    repository.run("git", "checkout", "--quiet", "main")
    for folder in ("artifacts", "data", "reports"):
        shutil.rmtree(repository.folder / folder)


@pytest.fixture
def repository(original: Repository, tmp_path: Path) -> Repository:
    """A copy of the repository for one test."""
    return Repository(Path(shutil.copytree(original.folder, tmp_path / "repository", symlinks=True)))


def branches(repository: Repository) -> set[str]:
    return set(repository.run("git", "branch", "--format=%(refname:short)").split())


def reports(repository: Repository) -> set[str]:
    return {path.name for path in (repository.folder / "runs").glob("[!.]*")}


def cached(repository: Repository) -> set[Path]:
    return {path for path in (repository.folder / ".dvc" / "cache").rglob("*") if path.is_file()}


def assert_repro_runs_nothing(repository: Repository) -> None:
    assert "Running stage" not in repository.run("dvc", "repro")
    assert repository.run("git", "status", "--porcelain") == ""


def test_without_a_terminal_it_only_lists_what_it_would_remove(repository: Repository) -> None:
    before = branches(repository), reports(repository), cached(repository)
    output = repository.run("cxr", *ALL_BUT_LAST, "--dry-run").splitlines()
    assert output[:3] == ["to remove:", "      1 branches", output[2]] and output[2].startswith(
        "      1 reports, "
    )
    assert "        retrain/old" in output and not any("kept" in line for line in output)
    *repeated, refused = repository.run("cxr", *ALL_BUT_LAST, fails=True).splitlines()
    assert repeated == output
    assert refused == "error: nothing was removed: no terminal to ask for confirmation; pass --yes"
    assert (branches(repository), reports(repository), cached(repository)) == before
    assert repository.run("cxr", "prune") == "nothing to remove\n"  # everything is younger than 30 days


def test_a_kept_result_is_restored_without_training(repository: Repository) -> None:
    old = repository.run("git", "rev-parse", "retrain/old").strip()
    assert repository.run("cxr", *ALL_BUT_LAST, "--yes").endswith("removed\n")
    assert branches(repository) == {"main", "retrain/kept"}
    assert reports(repository) == {"kept"}
    assert repository.run("cxr", *ALL_BUT_LAST, "--yes") == "nothing to remove\n"

    repository.run("git", "checkout", "--quiet", old)
    assert "artifacts/comparison" in repository.run("dvc", "checkout", fails=True)
    repository.run("git", "clean", "--quiet", "-ffdx", "--exclude=.dvc", "--exclude=runs")
    repository.run("git", "checkout", "--quiet", "--force", "retrain/kept")
    repository.run("dvc", "checkout")
    assert_repro_runs_nothing(repository)

    # The same if only the run cache has the result.
    repository.run("git", "clean", "--quiet", "-ffdx", "--exclude=.dvc", "--exclude=runs")
    (repository.folder / "dvc.lock").unlink()
    (repository.folder / "metrics.json").unlink()
    assert_repro_runs_nothing(repository)


@pytest.mark.soak
def test_stages_of_recent_runs_are_kept_even_if_no_branch_has_them(repository: Repository) -> None:
    repository.run("git", "branch", "--quiet", "--delete", "--force", "retrain/old")
    shutil.rmtree(repository.folder / "runs" / "old")
    before = cached(repository)
    remove(repository.folder, find(repository.folder, days=1, keep_last=0))
    assert cached(repository) == before
    repository.set("report.figures=[1]")
    assert "Running stage" not in repository.run("dvc", "repro")


def kept(repository: Repository) -> list[str]:
    """Remove old results, and return the lines about those that are kept."""
    plan = find(repository.folder, days=0, keep_last=0)
    remove(repository.folder, plan)
    return plan.kept


def test_a_branch_that_is_checked_out_is_kept(repository: Repository, tmp_path: Path) -> None:
    repository.run("git", "checkout", "--quiet", "retrain/old")
    repository.run("git", "worktree", "add", "--quiet", str(tmp_path / "mine"), "retrain/kept")
    assert sorted(kept(repository)) == [
        "retrain/kept: it is checked out",
        "retrain/old: it is checked out",
    ]
    assert branches(repository) == {"main", "retrain/kept", "retrain/old"}
    assert reports(repository) == {"kept", "old"}
    repository.run("dvc", "checkout")
    assert_repro_runs_nothing(repository)


@pytest.mark.parametrize("how", ["commit", "amended code", "amended params"])
def test_a_branch_with_the_users_own_commits_is_kept(repository: Repository, how: str) -> None:
    repository.run("git", "checkout", "--quiet", "retrain/old")
    path = repository.folder / ("params.yaml" if how == "amended params" else "README.md")
    with path.open("a") as file:
        file.write("# my own\n")
    amend = ["--amend", "--no-edit", "--date=2020-01-01T00:00:00"] if how == "amended params" else []
    amend = ["--amend", "--no-edit"] if how == "amended code" else amend
    repository.run("git", "commit", "--quiet", "--all", *(amend or ["--message", "my own"]))
    repository.run("git", "checkout", "--quiet", "main")
    assert kept(repository) == ["retrain/old: it has commits that no run made"]
    assert branches(repository) == {"main", "retrain/old"}
    assert reports(repository) == {"old"}


def test_a_branch_that_no_run_made_is_kept(repository: Repository) -> None:
    repository.run("git", "branch", "retrain/mine", "main")
    assert kept(repository) == ["retrain/mine: it has commits that no run made"]
    assert branches(repository) == {"main", "retrain/mine"}


def test_in_a_terminal_it_asks_for_confirmation(repository: Repository) -> None:
    for answer, removed in (("", False), ("n\n", False), ("y\n", True)):
        screen, terminal = pty.openpty()
        with os.fdopen(screen, "wb", buffering=0) as keyboard:
            with subprocess.Popen(
                ["cxr", *ALL_BUT_LAST],
                cwd=repository.folder,
                env=environment(),
                stdin=terminal,
                stdout=subprocess.PIPE,
            ) as process:
                keyboard.write(answer.encode() or b"\x04")  # Ctrl-D
                os.close(terminal)
                assert process.stdout and b"Remove? [y/N] " in process.stdout.read()
            assert process.returncode == 0
        assert ("retrain/old" not in branches(repository)) == removed


@pytest.mark.soak
def test_data_of_tags_and_merged_commits_is_kept(repository: Repository) -> None:
    repository.run("git", "tag", "best", "retrain/old")
    repository.run("git", "merge", "--quiet", "--strategy=ours", "--no-edit", "retrain/kept")
    assert kept(repository) == []
    assert branches(repository) == {"main"}
    for revision in ("best", "main^2"):  # no file on main refers to the second
        repository.run("git", "checkout", "--quiet", "--force", revision)
        repository.run("dvc", "checkout")
        assert_repro_runs_nothing(repository)


def test_data_of_stashes_is_kept(repository: Repository) -> None:
    repository.run("git", "checkout", "retrain/old", "--", *RESULTS)
    repository.run("git", "stash", "--quiet")
    (repository.folder / "README.md").write_text("stashed later")
    repository.run("git", "stash", "--quiet")
    assert kept(repository) == []
    repository.run("git", "stash", "pop", "--quiet", "stash@{1}")
    repository.run("dvc", "checkout")
    assert "Running stage" not in repository.run("dvc", "repro")


def test_during_a_run_its_checkout_and_the_cache_are_kept(repository: Repository) -> None:
    before = cached(repository)
    with checked_out(repository.folder, "retrain/old", "running", "id") as checkout:
        assert kept(repository) == ["checkpoints and the DVC cache: a run is in progress"]
        assert branches(repository) == {"main"}
        assert (checkout / "params.yaml").exists()
        assert cached(repository) == before


def test_leftovers_of_a_killed_run_are_removed(repository: Repository) -> None:
    checkpoints = repository.folder / ".dvc" / "tmp" / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    for name in (f"unet-1-{16 * 'a'}.pt", f"unet-2-{16 * 'b'}.pt", "my-own.pt"):
        (checkpoints / name).write_bytes(bytes(1000))
    long_ago = time.time() - 40 * 24 * 3600
    os.utime(checkpoints / f"unet-1-{16 * 'a'}.pt", (long_ago, long_ago))
    code = """if True:
        import pathlib, signal
        from flows.repository.checkout import checked_out
        with checked_out(pathlib.Path.cwd(), "main", "killed", "id"):
            print("is there", flush=True)
            signal.pause()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=repository.folder, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"is there\n"
        process.kill()
    output = repository.run("cxr", "prune", "--yes")
    assert "      1 checkouts of runs that were killed, " in output
    assert "      1 checkpoints of unfinished trainings, 1 KB\n" in output
    assert list((repository.folder / "runs" / ".checkouts").iterdir()) == []
    assert {path.name for path in checkpoints.iterdir()} == {"my-own.pt", f"unet-2-{16 * 'b'}.pt"}


def test_a_cache_outside_the_repository_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (repository.folder / ".dvc" / "cache").rename(shared)
    repository.run("dvc", "cache", "dir", "--local", str(shared))
    before = set(shared.rglob("*"))
    assert kept(repository) == [f"the DVC cache {shared}: it is outside the repository, so others may use it"]
    assert branches(repository) == {"main"}
    assert set(shared.rglob("*")) == before


def test_a_killed_prune_leaves_a_valid_repository(repository: Repository) -> None:
    folder = repository.folder / ".dvc" / "cache" / "files" / "md5" / "00"
    folder.mkdir(exist_ok=True)
    for number in range(5_000):
        (folder / f"{number:030x}").touch()
    first = folder / f"{0:030x}"
    with subprocess.Popen(
        ["cxr", *ALL_BUT_LAST, "--yes"], cwd=repository.folder, env=environment(), stdout=subprocess.DEVNULL
    ) as process:
        while first.exists() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    left = sum(1 for _ in folder.iterdir())
    assert 0 < left < 5_000, "the kill came too early or too late"
    repository.run("git", "fsck", "--no-dangling")
    assert branches(repository) == {"main", "retrain/kept"}
    repository.run("git", "checkout", "--quiet", "retrain/kept")
    repository.run("dvc", "checkout")
    assert_repro_runs_nothing(repository)
    assert repository.run("cxr", *ALL_BUT_LAST, "--yes").endswith("removed\n")
    assert not list(folder.glob(25 * "0" + "*"))
    assert repository.run("cxr", *ALL_BUT_LAST, "--yes") == "nothing to remove\n"
