"""Checkpoints of trainings on the DVC remote, where they outlive the machine that trains."""

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.engine.runner import Log
from flows.repository.dvc_internals import find_files, get_file, open_repo, remote_files
from flows.repository.retry import one_line, with_retries

#: Folder for checkpoints on the DVC remote. The name is ours alone, since a remote may be a shared bucket.
CHECKPOINTS = "retrain-checkpoints"

#: The path of a checkpoint. Only files that match are ever deleted.
CHECKPOINT = re.compile(rf".*/{CHECKPOINTS}/[0-9a-f]{{64}}/[A-Za-z0-9_-]+-[0-9a-f]{{16}}\.pt")


class Checkpoints:
    """The checkpoints of one training: a local folder, and its copy on the remote.

    with remote.checkpoints(key, folder) as checkpoints:
        ...
        checkpoints.remove()
    """

    #: Seconds between two scans of the folder.
    EVERY = 5.0

    #: Maximum share of the time spent on uploads. A checkpoint is three times as large as its network.
    SHARE_OF_TIME = 0.1

    def __init__(self, files: Any, there: str, folder: Path, log: Log) -> None:
        self._files, self._there, self._folder, self._log = files, there, folder, log
        self._sent: dict[str, tuple[int, int]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_sending, daemon=True)

    def __enter__(self) -> "Checkpoints":
        """Download existing checkpoints from the remote, and upload each new one from now on."""
        with_retries("looking for checkpoints", self._fetch, self._log)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        """Upload the last checkpoint."""
        self._ended.set()
        self._thread.join()
        self._send()

    def remove(self) -> None:
        """Delete the checkpoints, here and on the remote, because the training is finished."""
        self._ended.set()
        self._thread.join()
        for path in self._folder.glob("*.pt"):
            path.unlink()
        try:
            for there in _checkpoints(self._files, self._there):
                self._files.rm_file(there)
        except Exception as error:  # no run will read them, and a later sweep deletes them
            self._log(f"could not delete checkpoints on the remote: {one_line(error)}")

    def _fetch(self) -> None:
        for path in _checkpoints(self._files, self._there):
            name = self._files.name(path)
            get_file(self._files, path, self._folder / name)
            self._sent[name] = _version(self._folder / name)
            self._log(f"continuing from the checkpoint {name}")

    def _keep_sending(self) -> None:
        pause = self.EVERY
        while not self._ended.wait(pause):
            started = time.monotonic()
            self._send()
            pause = max(self.EVERY, (time.monotonic() - started) / self.SHARE_OF_TIME)

    def _send(self) -> None:
        """Upload new checkpoints. After a failure the training continues, and the next scan tries again."""
        for path in sorted(self._folder.glob("*.pt")):
            snapshot = path.with_suffix(".sent")
            try:
                version = _version(path)
                if self._sent.get(path.name) == version:
                    continue
                # The training may replace the file during the upload.
                snapshot.unlink(missing_ok=True)
                snapshot.hardlink_to(path)
                self._files.makedirs(self._there)
                self._files.put_file(str(snapshot), self._files.join(self._there, path.name))
                self._sent[path.name] = version
            except FileNotFoundError:  # the training has just finished
                continue
            except Exception as error:
                self._log(f"warning: could not upload the checkpoint: {one_line(error)}")
            finally:
                snapshot.unlink(missing_ok=True)


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _checkpoints(files: Any, folder: str) -> list[str]:
    """Return the checkpoints in a folder and its subfolders."""
    return [path for path in find_files(files, folder) if CHECKPOINT.fullmatch(path)]


def sweep_checkpoints(checkout: Path, older_than: float) -> None:
    """Delete checkpoints on the remote that were uploaded more than `older_than` seconds ago."""
    with open_repo(checkout) as repo:
        files, root = remote_files(repo)
    for path in _checkpoints(files, files.join(root, CHECKPOINTS)):
        with suppress(FileNotFoundError):  # the training has just finished
            if time.time() - files.modified(path).timestamp() > older_than:
                files.rm_file(path)
