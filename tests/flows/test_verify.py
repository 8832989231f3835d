"""`cxr verify` on a published run: at each depth, and after one byte has changed."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from dvc.utils.serialize import load_yaml

from flows.repository.git import environment, git
from flows.repository.recorded import ChangedDataError, MissingDataError, OutdatedError
from flows.verify import (
    Depth,
    agreeing_decimals,
    choose,
    judge,
    read_intervals,
    read_metrics,
    summary,
    verify,
)
from tasks.support.cli import InputError
from tests.helpers import Repository, eventually

SCORE = "report1_bce.test.infection.covid.iou"
ROWS = "artifacts/evaluation/report1_bce-seed0"
WEIGHTS = "artifacts/train/report1_bce-seed0/network"


@pytest.fixture(scope="module")
def repository(finished_repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One whose results are committed, and whose data is in the DVC cache alone."""
    folder = tmp_path_factory.mktemp("verify") / "repository"
    shutil.copytree(finished_repository.folder, folder, ignore=shutil.ignore_patterns("artifacts", "reports"))
    repository = Repository(folder)
    repository.commit("Results")
    return repository


@pytest.fixture(autouse=True)
def nothing_is_left(repository: Repository) -> Iterator[None]:
    """Whatever happens, only the test itself may change the repository."""
    before = state(repository)
    yield
    assert state(repository) == before


def state(repository: Repository) -> tuple[object, ...]:
    worktrees = git(repository.folder, "worktree", "list")
    changed = git(repository.folder, "status", "--porcelain", "--ignored=no")
    cache = repository.folder / ".dvc" / "cache"
    return worktrees, changed, {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@contextmanager
def committed(repository: Repository, path: str, edit: Callable[[str], str]) -> Iterator[None]:
    """Within this context, HEAD has another text in a file."""
    text = repository.read(path)
    edited = edit(text)
    assert edited != text
    (repository.folder / path).write_text(edited)
    repository.commit("edited")
    try:
        yield
    finally:
        repository.run("git", "reset", "--quiet", "--hard", "HEAD~1")


def recorded(repository: Repository, stage: str, out: str) -> str:
    """Return the hash in dvc.lock of an output."""
    outs = load_yaml(str(repository.folder / "dvc.lock"))["stages"][stage]["outs"]
    return str(next(each["md5"] for each in outs if each["path"] == out))


def cached(repository: Repository, md5: str) -> Path:
    return repository.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def cached_in(repository: Repository, stage: str, out: str, name: str) -> Path:
    """Return the file of an output folder in the cache."""
    listed = json.loads(cached(repository, recorded(repository, stage, out)).read_bytes())
    return cached(repository, next(each["md5"] for each in listed if each["relpath"] == name))


@contextmanager
def one_byte_changed(path: Path) -> Iterator[None]:
    content, status = path.read_bytes(), path.stat()
    path.chmod(0o644)
    try:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        path.chmod(0o444)  # DVC trusts it
        yield
        assert path.read_bytes() != content  # it is evidence
    finally:
        path.chmod(0o644)
        path.write_bytes(content)
        path.chmod(status.st_mode)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- a run that holds ---------------------------------------------------------------------------------------


def test_from_rows_every_score_holds(repository: Repository) -> None:
    output = repository.run("cxr", "verify")
    count = len(read_metrics(repository.read("metrics.json")))
    assert f"{count} scores recomputed: {count} hold to every digit" in output
    assert re.findall("Running stage '(.+)'", output) == ["compare", "report"]
    assert output.endswith("HEAD holds\n")


def test_from_data_the_network_of_a_score_is_trained_again(repository: Repository) -> None:
    output = repository.run("cxr", "verify", "main", "--score", SCORE, "--from", "data")
    ran = [f"train@{SCORE.split('.')[0]}-seed0", f"evaluate@{SCORE.split('.')[0]}-seed0", "compare", "report"]
    assert re.findall("Running stage '(.+)'", output) == ran
    assert all(f"{stage}: same bytes as in dvc.lock" in output for stage in ran[:2])
    assert re.search(rf"{SCORE}: published (\S+), recomputed \1: holds to every digit", output)


@pytest.mark.soak
def test_from_weights_everything_after_the_trainings_runs(repository: Repository) -> None:
    output = repository.run("cxr", "verify", "--from", "weights")
    ran = re.findall("Running stage '(.+)'", output)
    evaluated = [f"evaluate@{name}-seed0" for name in ("report1_bce", "report1_bce_iou")]
    assert sorted(ran) == sorted(["audit", "baselines@infection", *evaluated, "compare", "report"])
    assert output.endswith("HEAD holds\n")


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_verification_leaves_nothing(repository: Repository, how: signal.Signals) -> None:
    command = ["cxr", "verify", "--score", SCORE, "--from", "data"]
    with subprocess.Popen(
        command, cwd=repository.folder, env=environment(), start_new_session=True
    ) as process:
        eventually(
            "it trains", lambda: [one for one in working(repository) if "tasks.train" in one.cmdline()]
        )
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        assert process.wait(60) == (130 if how == signal.SIGINT else 143)
    assert not working(repository)
    assert not list((repository.folder / "runs" / ".checkouts").iterdir())


def working(repository: Repository) -> list[psutil.Process]:
    """Return the processes that work in a checkout of the repository."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(repository.folder / "runs"):
                found.append(process)
    return found


# --- one changed byte ---------------------------------------------------------------------------------------


def test_an_edited_score_does_not_hold(repository: Repository, capfd: pytest.CaptureFixture[str]) -> None:
    value = read_metrics(repository.read("metrics.json"))[SCORE]
    assert value
    edited = round(value - 1e-6, 6)

    def edit(text: str) -> str:
        metrics = json.loads(text)
        metrics["report1_bce"]["test"]["infection"]["covid"]["iou"] = edited
        return json.dumps(metrics, indent=2, sort_keys=True) + "\n"

    with committed(repository, "metrics.json", edit):
        with pytest.raises(InputError, match=re.escape(f"HEAD does not hold: {SCORE}")):
            verify(repository.folder, "HEAD")
        output = capfd.readouterr().out
        assert f"{SCORE}: published {edited:.6f}, recomputed {value:.6f}: does not hold" in output
        assert "1 differ, at most by 0.000001" in output
        with pytest.raises(
            InputError, match=r"metrics.json was edited: dvc.lock names md5 [0-9a-f]{32}, found"
        ):
            verify(repository.folder, "HEAD", ["dataset.images"])
        assert "dataset.images: published 45, recomputed 45: holds" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("stage", "out", "name", "depth"),
    [
        ("evaluate@report1_bce-seed0", ROWS, "images.csv", "rows"),
        ("train@report1_bce-seed0", WEIGHTS, "weights.safetensors", "weights"),
    ],
)
def test_a_changed_byte_in_the_cache_is_named_before_anything_runs(
    stage: str,
    out: str,
    name: str,
    depth: Depth,
    repository: Repository,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = cached_in(repository, stage, out, name)
    with one_byte_changed(file):
        found = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        with pytest.raises(ChangedDataError) as error:
            verify(repository.folder, "HEAD", [SCORE], depth)
        place = f"{out}/{name} has changed in the DVC cache ({file})"
        named = f"dvc.lock names md5 {file.parent.name}{file.name}, found {found}"
        assert str(error.value) == f"{place}: {named}"
        assert "Running stage" not in capfd.readouterr().out


# --- dvc.lock -----------------------------------------------------------------------------------------------


def test_data_that_is_nowhere_is_named(repository: Repository) -> None:
    md5 = recorded(repository, "evaluate@report1_bce-seed0", ROWS)
    nowhere = f"{'0' * 32}.dir"
    with committed(repository, "dvc.lock", lambda text: text.replace(md5, nowhere)):
        with pytest.raises(MissingDataError) as error:
            verify(repository.folder, "HEAD")
        lacks = f"the DVC cache does not have {ROWS}/ (md5 {nowhere}), and no default DVC remote is set"
        assert str(error.value).startswith(lacks)


def test_results_of_another_run_are_out_of_date(repository: Repository) -> None:
    ours = recorded(repository, "evaluate@report1_bce-seed0", ROWS)
    other = recorded(repository, "evaluate@report1_bce_iou-seed0", ROWS.replace("bce", "bce_iou"))
    message = r"compare is out of date: .* another artifacts/evaluation;"
    edited = committed(repository, "dvc.lock", lambda text: text.replace(ours, other))
    with edited, pytest.raises(OutdatedError, match=message):
        verify(repository.folder, "HEAD")


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (
            "params.yaml",
            "correlation: 0.98",
            "correlation: 0.97",
            "plan is out of date: dvc.lock records a run with another params.yaml;",
        ),
        (
            "models/metrics.py",
            '"""',
            '"""Changed. ',
            "baselines@infection is out of date: dvc.lock records a run with another models/metrics.py;",
        ),
        ("dvc.yaml", "tasks.report artifacts", "tasks.report  artifacts", "report is out of date: "),
    ],
)
def test_a_change_after_the_run_names_the_stage_that_is_out_of_date(
    path: str, old: str, new: str, message: str, repository: Repository
) -> None:
    edited = committed(repository, path, lambda text: text.replace(old, new, 1))
    with edited, pytest.raises(OutdatedError, match=re.escape(message)):
        verify(repository.folder, "HEAD")


# --- data on the DVC remote ---------------------------------------------------------------------------------


def test_data_comes_from_the_remote_and_is_checked(repository: Repository, tmp_path: Path) -> None:
    md5 = recorded(repository, "evaluate@report1_bce-seed0", ROWS)
    lists, file = (
        cached(repository, md5),
        cached_in(repository, "evaluate@report1_bce-seed0", ROWS, "images.csv"),
    )
    settings = repository.folder / ".dvc" / "config.local"
    settings.write_text(
        f"[core]\n    remote = beside\n['remote \"beside\"']\n    url = {tmp_path / 'remote'}\n"
    )
    shutil.copytree(repository.folder / ".dvc" / "cache" / "files", tmp_path / "remote" / "files")
    remote = tmp_path / "remote" / "files" / "md5" / file.parent.name / file.name
    kept = {path: (path.read_bytes(), path.stat()) for path in (lists, file)}
    try:
        for path in kept:
            path.unlink()
        message = rf"{ROWS}/images.csv has changed on the DVC remote: "
        with one_byte_changed(remote), pytest.raises(ChangedDataError, match=message):
            verify(repository.folder, "HEAD", [SCORE])
        assert not file.exists()
        verify(repository.folder, "HEAD", [SCORE])
        assert file.read_bytes() == kept[file][0]
        for path in (file, remote):
            path.unlink()
        with pytest.raises(MissingDataError, match=rf"the DVC remote has {ROWS}/images.csv .*`dvc push"):
            verify(repository.folder, "HEAD", [SCORE])
    finally:
        for path, (content, status) in kept.items():
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            path.chmod(status.st_mode)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        settings.unlink()


# --- what is asked for --------------------------------------------------------------------------------------


def test_a_revision_without_results_names_those_that_have_some(repository: Repository) -> None:
    repository.run("git", "branch", "retrain/first")
    try:
        with pytest.raises(InputError, match=r"HEAD~1: nothing is published there: .*: retrain/first$"):
            verify(repository.folder, "HEAD~1")
    finally:
        repository.run("git", "branch", "--delete", "--force", "retrain/first")


PUBLISHED = {"net.test.lung.all.iou": 0.5, "net.test.lung.all.dice": 0.6, "netto.test.lung.all.iou": 0.7}


def test_a_score_is_named_in_full_or_by_its_beginning() -> None:
    assert choose(PUBLISHED, []) == list(PUBLISHED)
    assert choose(PUBLISHED, ["net"]) == list(PUBLISHED)[:2]
    assert choose(PUBLISHED, ["net.test.lung.all.dice", "net"]) == list(PUBLISHED)[1::-1]
    with pytest.raises(
        InputError, match=r"--score net.test.lung.all.iuo: no such score .* net.test.lung.all.iou"
    ):
        choose(PUBLISHED, ["net.test.lung.all.iuo"])


def test_metrics_are_read_by_their_paths() -> None:
    assert read_metrics('{"a": {"b": 0.5, "c": null}, "d": 3}') == {"a.b": 0.5, "a.c": None, "d": 3}
    for text in ("{", '{"a": {"b": "0.5"}}'):
        with pytest.raises(InputError, match=r"^metrics.json: "):
            read_metrics(text)


# --- comparing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "decimals"),
    [(0.4, 0), (0.05, 1), (0.051, 0), (0.00003, 4), (0.00005, 4), (0.000051, 3), (0.000001, 5), (1e-9, 6)],
)
def test_decimals_that_agree(difference: float, decimals: int) -> None:
    assert agreeing_decimals(difference) == decimals


@pytest.mark.parametrize(
    ("published", "recomputed", "tolerance", "holds", "words"),
    [
        (0.5, 0.5, 0.0, True, "published 0.500000, recomputed 0.500000: holds to every digit"),
        (None, None, 0.0, True, "published null, recomputed null: holds to every digit"),
        (0.5, None, 1.0, False, "recomputed null: does not hold"),
        (
            0.58034,
            0.58031,
            0.001,
            True,
            "holds (agrees to 4 decimals, tolerance 0.001); within its 95% interval",
        ),
        (0.58034, 0.58031, 0.0, False, "does not hold (agrees to 4 decimals, tolerance 0)"),
        (0.58034, 0.4, 0.001, False, "outside its 95% interval, 0.5000 to 0.6000"),
        (40.0, 40.03, 0.001, True, "holds (agrees to 1 decimal,"),
    ],
)
def test_a_score_holds_within_the_tolerance(
    published: float | None, recomputed: float | None, tolerance: float, holds: bool, words: str
) -> None:
    judged = judge("score", published, recomputed, tolerance, (0.5, 0.6))
    assert judged.holds == holds
    assert words in judged.line


def test_the_summary_has_the_largest_difference() -> None:
    scores = {"a": (0.5, 0.5), "b": (0.5, 0.5001), "c": (0.5, 0.7)}
    judged = [judge(name, *values, tolerance=0.001) for name, values in scores.items()]
    assert [one.holds for one in judged] == [True, True, False]
    *differ, total = summary(judged, every=False)
    assert [line[0] for line in differ] == ["b", "c"]
    assert total == "3 scores recomputed: 1 hold to every digit, 2 differ, at most by 0.200000 (c)"


def test_intervals_have_the_names_of_scores(finished_repository: Repository) -> None:
    intervals = read_intervals(finished_repository.folder / "artifacts" / "comparison" / "scores.csv")
    published = read_metrics(finished_repository.read("metrics.json"))
    low, high = intervals[SCORE]
    assert low <= (published[SCORE] or 0) <= high
    assert read_intervals(Path("missing.csv")) == {}
