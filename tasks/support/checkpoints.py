"""The state of a training that isn't finished, so that it goes on where it was killed.

    .dvc/tmp/checkpoints/TRAINING-KEY.pt

DVC deletes a stage's outputs before it runs the stage, so a checkpoint is none of them. Its key is a hash
over all that determines the training: a changed one never goes on from it, and a finished one leaves none.
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

#: Where checkpoints lie, if not in `FOLDER` below the current folder; a flow's own checkout is soon gone.
FOLDER_VARIABLE = "RETRAIN_CHECKPOINTS"
FOLDER = Path(".dvc/tmp/checkpoints")

#: Seconds between two checkpoints within an epoch, at least.
WITHIN_EPOCH = 10.0

#: Saving may take this share of the time, so that a large state is saved less often than each short epoch.
SHARE_OF_TIME = 0.05

#: Seconds after which the checkpoint of a training that nobody took up again is deleted.
KEPT_FOR = 30 * 24 * 3600.0

#: The same of one that was killed while it saved.
HALF_WRITTEN_FOR = 3600.0

#: What checkpoints are called, and what one is while it is written; nothing else is ever deleted.
NAME = re.compile(r"[A-Za-z0-9_-]+-[0-9a-f]{16}\.pt(?P<half>\.\d+)?")

State = dict[str, Any]


class Checkpoint:
    """The file that holds the state of one training, if it has been killed or still runs."""

    def __init__(self, name: str, key: str) -> None:
        folder = Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)
        self.path = folder / f"{name}-{key[:16]}.pt"
        self._saved_at, self._cost = time.monotonic(), 0.0
        _remove_forgotten(folder)

    def load(self) -> State | None:
        """The state that was saved last, its tensors on the CPU; None where there is none."""
        if not self.path.exists():
            return None
        import torch  # here, since `cxr prune` does without

        try:
            state: State = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:
            # What a loss of power left can be anything; the training is only longer without it.
            print(f"{self.path}: unreadable, so the training starts anew", flush=True)
            return None
        return state

    def due(self, epoch_ended: bool) -> bool:
        """Whether it is time to save."""
        passed = time.monotonic() - self._saved_at
        return passed >= self._cost / SHARE_OF_TIME and (epoch_ended or passed >= WITHIN_EPOCH)

    def save(self, state: State) -> bool:
        """Replace what was saved before; a kill leaves the one or the other. Whether it could be saved.

        A training goes on without a checkpoint where the disk is full.
        """
        import torch

        started, saved = time.monotonic(), True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Two trainings of one key save the same, each beside under a name of its own.
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            torch.save(state, beside)
            beside.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch says by a RuntimeError that it could not write
            saved = False
            beside.unlink(missing_ok=True)
            print(f"warning: {self.path}: not saved: {str(error).splitlines()[0]}", flush=True)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started
        return saved

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def key_of(facts: Iterable[str]) -> str:
    """A hash over what determines a training: these facts, such as its plan and data, and the code."""
    hashed = hashlib.sha256("\n".join(facts).encode())
    for path in _own_modules():
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _own_modules() -> list[Path]:
    """The files of the project's modules that this process has loaded."""
    root = Path(__file__).parents[2]
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    paths = {Path(file) for file in files if file}
    return sorted(p for p in paths if any(p.is_relative_to(root / own) for own in ("tasks", "models")))


def _remove_forgotten(folder: Path) -> None:
    for path in folder.glob("*"):
        if name := NAME.fullmatch(path.name):
            kept_for = HALF_WRITTEN_FOR if name["half"] else KEPT_FOR
            with suppress(OSError):  # another training was faster, or it is somebody else's
                if time.time() - path.stat().st_mtime > kept_for:
                    path.unlink()
