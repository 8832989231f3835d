"""Locks on file systems that have none."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.deployment.supervision import exclusive
from flows.repository.checkout import none_running
from tasks.sources.transfer import Transfer
from tasks.support.cli import InputError
from tasks.support.locks import alone_in, in_use, is_in_use, lock_file
from tasks.support.slots import Slots


def of_a_transfer(folder: Path) -> None:
    Transfer("https://host/a.zip", [1], lambda _: [b"x"], folder / "transfer").bring([0])


def of_a_run(folder: Path) -> None:
    with none_running(folder):
        pass


def of_a_service(folder: Path) -> None:
    with exclusive(folder, "serve"):
        pass


def of_a_slot(folder: Path) -> None:
    with Slots(["gpu-0"], per_stage=1, variables=lambda _: {}).acquire(print):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
@pytest.mark.parametrize(
    ("lock", "path"),
    [
        (of_a_transfer, "transfer/lock"),
        (of_a_run, "runs/.running.lock"),
        (of_a_service, "runs/.serve.lock"),
        (of_a_slot, f"covid-qu-ex-slots-{os.getuid()}/choosing"),
    ],
)
def test_a_file_system_without_locks_is_reported_with_the_file_and_the_way_out(
    lock: Callable[[Path], None], path: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", without_locks)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError) as refused:
        lock(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path / path}: the file system has no locks; "
        "use a local disk (for the temporary folder, set TMPDIR), or mount it with flock"
    )


def test_a_lock_that_another_process_holds_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as first, path.open("wb") as second:
        lock_file(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            lock_file(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_is_in_use_while_a_process_says_so(tmp_path: Path) -> None:
    assert is_in_use(tmp_path) is False
    with in_use(tmp_path), in_use(tmp_path):
        assert is_in_use(tmp_path) is True
    assert is_in_use(tmp_path) is False
    assert is_in_use(tmp_path / "missing") is False


def test_a_folder_is_kept_for_one_process(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        assert is_in_use(tmp_path) is True
        with pytest.raises(BlockingIOError), alone_in(tmp_path):
            pass
    with in_use(tmp_path), pytest.raises(BlockingIOError), alone_in(tmp_path):
        pass
    assert is_in_use(tmp_path) is False


def test_without_locks_a_folder_can_be_used_and_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with in_use(tmp_path):
        assert is_in_use(tmp_path) is None
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
