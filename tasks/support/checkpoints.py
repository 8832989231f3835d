"""Saves the state of an unfinished training so that it can be resumed.

    .dvc/tmp/checkpoints/TRAINING-KEY.pt    in the user's repository, whose copies are temporary

DVC deletes a stage's outputs before it runs the stage, so checkpoints are not outputs. The key is a hash of
everything that determines the training: a changed training does not resume from the checkpoint. A finished
training deletes its checkpoint.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tasks.support.repository import user_repository

#: Environment variable with the checkpoint folder. Flows set it, because their own checkouts are temporary.
FOLDER_VARIABLE = "RETRAIN_CHECKPOINTS"
FOLDER = Path(".dvc/tmp/checkpoints")

#: Minimum seconds between two checkpoints within an epoch.
WITHIN_EPOCH = 10.0

#: Maximum share of the time spent on saving. A large state is then not saved after every short epoch.
SHARE_OF_TIME = 0.05

#: Seconds after which the checkpoint of an abandoned training is deleted.
KEPT_FOR = 30 * 24 * 3600.0

#: Seconds after which a file is deleted whose process was killed while saving it.
HALF_WRITTEN_FOR = 3600.0

#: Names of checkpoints, complete and partial; no other file is ever deleted.
NAME = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{16}\.pt(?P<half>\.\d+)?")

State = dict[str, Any]


class Checkpoint:
    """The checkpoint file of one training."""

    def __init__(self, name: str, key: str) -> None:
        folder = Path(os.environ.get(FOLDER_VARIABLE) or user_repository() / FOLDER)
        self.path = folder / f"{name}-{key[:16]}.pt"
        self._saved_at, self._cost = time.monotonic(), 0.0
        _remove_forgotten(folder)

    def load(self) -> State | None:
        """Load the last state, with tensors on the CPU; None if there is none."""
        if not self.path.exists():
            return None
        import torch  # imported here because `cxr prune` does not need it

        try:
            state: State = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:
            # After a power failure the file can contain anything. Starting over only costs time.
            print(f"{self.path}: unreadable, so the training starts from the beginning", flush=True)
            return None
        return state

    def due(self, epoch_ended: bool) -> bool:
        """Whether the state should be saved now."""
        passed = time.monotonic() - self._saved_at
        return passed >= self._cost / SHARE_OF_TIME and (epoch_ended or passed >= WITHIN_EPOCH)

    def save(self, state: State) -> bool:
        """Replace the checkpoint atomically; return whether it was saved.

        If the disk is full, training continues without a checkpoint.
        """
        import torch

        started, saved = time.monotonic(), True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Trainings with the same key save the same state; each writes to its own temporary file.
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            torch.save(state, beside)
            beside.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            saved = False
            beside.unlink(missing_ok=True)
            print(f"warning: {self.path}: not saved: {str(error).splitlines()[0]}", flush=True)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started
        return saved

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def key_of(facts: Iterable[str]) -> str:
    """A hash of what determines a training: the given facts, such as its plan and data, and the code."""
    hashed = hashlib.sha256("\n".join(facts).encode())
    for path in _own_modules():
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _own_modules() -> list[Path]:
    """The files of the project's modules that this process has imported."""
    root = Path(__file__).parents[2]
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {Path(file) for file in files if file}
    return sorted(p for p in paths if any(p.is_relative_to(root / own) for own in ("tasks", "models")))


def _remove_forgotten(folder: Path) -> None:
    for path in folder.glob("*"):
        if name := NAME.fullmatch(path.name):
            kept_for = HALF_WRITTEN_FOR if name["half"] else KEPT_FOR
            with suppress(OSError):  # deleted by another training, or owned by another user
                if time.time() - path.stat().st_mtime > kept_for:
                    path.unlink()
