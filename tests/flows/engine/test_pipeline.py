"""Stages through real DVC, in minimal repositories."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.engine.pipeline import restore_output, restore_pipeline, sort_lock
from flows.engine.runner import Outcome, StageRunner
from tasks.support.cli import TEMPORARY
from tasks.support.events import Event
from tasks.support.slots import Slot
from tests.helpers import Repository, empty_repository

NO_SLOT = Slot({}, ())


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Repository]:
    def make(dvc_yaml: str) -> Repository:
        repository = empty_repository(tmp_path / "repository")
        (repository.folder / "dvc.yaml").write_text(dvc_yaml)
        return repository

    return make


def run(repository: Repository, stage: str) -> tuple[Outcome, str]:
    done = StageRunner(repository.folder).run(stage, NO_SLOT, lambda line: None, lambda event: None)
    return done.outcome, done.tail


@pytest.mark.parametrize(
    ("command", "outcome", "tail"),
    [
        ("echo done > out", Outcome.RAN, ""),
        ("echo wrong; exit 1", Outcome.FAILED, "wrong"),
        (f"echo away; exit {TEMPORARY}", Outcome.INTERRUPTED, "away"),
        ("echo memory; kill -KILL $$", Outcome.INTERRUPTED, "memory"),
        ("echo memory; exit 137", Outcome.INTERRUPTED, "memory"),  # how dash reports SIGKILL
        ("echo memory; kill -KILL $PPID; sleep 1", Outcome.INTERRUPTED, "memory"),  # DVC itself
        ("echo stopped; kill -TERM $$", Outcome.FAILED, "stopped"),
        ("echo stopped; exit 143", Outcome.FAILED, "stopped"),
        ("exit 3", Outcome.FAILED, "ERROR: failed to reproduce 'a': failed to run: exit 3, exited with 3"),
    ],
)
def test_the_exit_status_of_a_stage_decides_whether_it_is_retried(
    make: Callable[[str], Repository], command: str, outcome: Outcome, tail: str
) -> None:
    repository = make(f"stages:\n  a:\n    cmd: {command}\n    outs: [out]\n")
    assert run(repository, "a") == (outcome, tail)


def test_events_are_shown_while_a_stage_runs_without_those_of_an_earlier_attempt(
    make: Callable[[str], Repository],
) -> None:
    repository = make("stages:\n  a:\n    cmd: sh stage.sh\n    outs: [out]\n")
    event = json.dumps({"time": "now", "what": "images", "done": 1, "total": 2, "fraction": 0.5})
    (repository.folder / "stage.sh").write_text(f"""
        echo '{event}' >> "$RETRAIN_EVENTS"
        for try in $(seq 600); do test -e seen && break; sleep 0.1; done
        test -e seen && rm seen && test -e again && touch out && exit
        printf 'half a line' >> "$RETRAIN_EVENTS"; touch again; exit 1
    """)
    runner, shown = StageRunner(repository.folder), []

    def show(event: Event) -> None:
        shown.append((event.what, event.fraction))
        (repository.folder / "seen").touch()

    for outcome in (Outcome.FAILED, Outcome.RAN):
        assert runner.run("a", NO_SLOT, lambda line: None, show).outcome is outcome
    assert shown == 2 * [("images", 0.5)]


def test_a_silent_stage_is_ended_and_retried(
    make: Callable[[str], Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.engine.runner.SILENCE", 5.0)
    repository = make("stages:\n  a:\n    cmd: echo began; sleep 600\n    outs: [out]\n")
    started = time.monotonic()
    outcome, tail = run(repository, "a")
    assert outcome is Outcome.INTERRUPTED
    # On a busy machine DVC takes more than 5 s to start the stage.
    assert tail.removeprefix("began\n") == "ended, because it printed nothing for 5 s"
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "sign",
    [
        "echo line",
        """echo '{"time": "now", "what": "x", "done": 1, "total": 2, "fraction": 0.5}' >> $RETRAIN_EVENTS""",
    ],
    ids=["line", "event"],
)
def test_a_stage_that_shows_progress_is_not_ended(
    make: Callable[[str], Repository], monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.setattr("flows.engine.runner.SILENCE", 6.0)
    repository = make("stages:\n  a:\n    cmd: sh stage.sh\n    outs: [out]\n")
    (repository.folder / "stage.sh").write_text(f"for n in 1 2 3 4 5; do {sign}; sleep 2; done; touch out")
    assert run(repository, "a")[0] is Outcome.RAN


def test_nothing_starts_after_a_stop(make: Callable[[str], Repository]) -> None:
    repository = make("stages:\n  a:\n    cmd: touch out\n    outs: [out]\n")
    runner = StageRunner(repository.folder)
    runner.stop()
    assert runner.run("a", NO_SLOT, lambda line: None, lambda event: None).outcome is Outcome.FAILED
    assert not (repository.folder / "out").exists()


CHAIN = """
stages:
  first:
    cmd: echo first > first.txt
    deps: [seed.txt]
    outs: [first.txt]
  second:
    cmd: cat first.txt other.txt > second.txt
    deps: [first.txt, other.txt]
    outs: [second.txt]
  last:
    cmd: cp second.txt last.txt
    deps: [second.txt]
    metrics:
      - last.txt:
          cache: false
"""


@pytest.fixture
def chain(make: Callable[[str], Repository]) -> Repository:
    repository = make(CHAIN)
    for name in ("seed.txt", "other.txt"):
        (repository.folder / name).write_text(name)
    repository.run("dvc", "repro")
    return repository


def forget_outputs(repository: Repository) -> None:
    for name in ("first.txt", "second.txt", "last.txt"):
        (repository.folder / name).unlink()


@pytest.mark.parametrize("forget", ["run cache", "dvc.lock"])
def test_the_dvc_cache_restores_every_stage_that_it_has(chain: Repository, forget: str) -> None:
    forget_outputs(chain)
    lock = chain.read("dvc.lock")
    if forget == "run cache":
        chain.run("rm", "-r", ".dvc/cache/runs")
        (chain.folder / "last.txt").write_text("seed.txtother.txt")  # as committed to git
    else:
        (chain.folder / "dvc.lock").unlink()
    pipeline = restore_pipeline(chain.folder)
    whole = {"first", "second"} if forget == "run cache" else {"first", "second", "last"}
    assert whole <= pipeline.restored
    assert pipeline.upstream == {"first": set(), "second": {"first"}, "last": {"second"}}
    assert pipeline.order == ["first", "second", "last"]
    assert chain.read("second.txt") == "first\nother.txt"
    if forget == "dvc.lock":
        sort_lock(chain.folder, pipeline.order)
        assert chain.read("dvc.lock") == lock


def test_stages_that_depend_on_a_change_are_not_restored(chain: Repository) -> None:
    forget_outputs(chain)
    (chain.folder / "other.txt").write_text("changed")
    assert restore_pipeline(chain.folder).restored == {"first"}
    assert not (chain.folder / "second.txt").exists()
    assert run(chain, "second")[0] is Outcome.RAN
    assert run(chain, "first")[0] is Outcome.CACHED


def test_the_order_of_dvc_lock_does_not_depend_on_the_cache(
    make: Callable[[str], Repository],
) -> None:
    repository = make(
        "stages:\n"
        "  a: {cmd: cp seed a.txt, deps: [seed], outs: [a.txt]}\n"
        "  b: {cmd: cp other b.txt, deps: [other], outs: [b.txt]}\n"
    )
    for name in ("seed", "other"):
        (repository.folder / name).write_text(name)
    repository.run("dvc", "repro")
    (repository.folder / "dvc.lock").unlink()
    (repository.folder / "seed").write_text("changed")
    pipeline = restore_pipeline(repository.folder)
    assert (pipeline.restored, pipeline.order) == ({"b"}, ["a", "b"])


def test_one_output_is_restored_if_the_cache_has_it(chain: Repository) -> None:
    forget_outputs(chain)
    assert restore_output(chain.folder, "first.txt")
    assert chain.read("first.txt") == "first\n"
    chain.run("rm", "-r", ".dvc/cache/files")
    assert not restore_output(chain.folder, "second.txt")
