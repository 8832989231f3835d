"""Draw the curves of running and finished trainings in a terminal until the trainings end."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TextIO

import psutil

from flows.curves.histories import History, State, checkouts, find_histories
from flows.curves.tensorboard import EventFiles
from flows.curves.terminal import frame
from tasks.support.cli import InputError

#: Seconds between two looks at the files.
EVERY = 1.0

#: Seconds between two frames where they cannot replace each other, as in a log.
EVERY_IN_A_LOG = 20.0

#: Seconds without a training or a running stage after which watching ends.
PATIENCE = 5.0

#: Moves the cursor up by some lines, and clears everything below.
UP_AND_CLEAR = "\x1b[{}F\x1b[J"

NOTHING = "no training is running"


def watch(repository: Path, keys: Sequence[str], once: bool, tensorboard: Path | None) -> None:
    """Draw the curves, and update them until no training runs. Ctrl-C ends it too.

    Args:
        keys: trainings or patterns; by default all.
        once: draw them once.
        tensorboard: folder for event files.

    Raises:
        InputError: no training matches a key, or TensorBoard is not installed.
    """
    try:
        if tensorboard is None:
            _watch(repository, keys, once, None)
            return
        with closing(EventFiles(tensorboard)) as events:
            _watch(repository, keys, once, events)
        print(f"TensorBoard: tensorboard --logdir {tensorboard}")
    except BrokenPipeError:  # as `cxr watch | head` ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit


def _watch(repository: Path, keys: Sequence[str], once: bool, events: EventFiles | None) -> None:
    screen, heard = Screen(sys.stdout), time.monotonic()
    found = _find(repository, keys)
    if not _any_runs(found) and (once or keys or not _is_busy(repository)):
        heard -= PATIENCE  # there is nothing to wait for
    while True:
        if events:
            events.update(found)
        now = time.monotonic()
        if _any_runs(found) or (not keys and _is_busy(repository)):
            heard = now
        ended = once or now - heard >= PATIENCE
        screen.show(found, last=ended)
        if ended:
            break
        time.sleep(EVERY)
        found = find_histories(repository, keys)
    if not _any_runs(found):
        print(NOTHING if found else f"{NOTHING}, and none has left a history")


def _find(repository: Path, keys: Sequence[str]) -> list[History]:
    for key in keys:
        if not find_histories(repository, [key]):
            known = ", ".join(dict.fromkeys(history.training for history in find_histories(repository)))
            raise InputError(f"{key}: no such training is running or has a history; known: {known or 'none'}")
    return find_histories(repository, keys)


def _any_runs(histories: Sequence[History]) -> bool:
    return any(history.state is State.RUNNING for history in histories)


def _is_busy(repository: Path) -> bool:
    """Whether DVC runs stages in a checkout, so that a training may follow."""
    folders = {checkout.resolve() for _, checkout in checkouts(repository)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            is_dvc = any(Path(word).name == "dvc" for word in words[:2]) and {"repro", "exp"} & set(words)
            if is_dvc and Path(process.cwd()) in folders:
                return True
    return False


class Screen:
    """Shows frames. On a terminal, each replaces the one before; elsewhere they follow each other."""

    def __init__(self, output: TextIO) -> None:
        self._output, self._replaces = output, output.isatty()
        self._lines, self._shown, self._due = 0, "", 0.0

    def show(self, histories: Sequence[History], last: bool) -> None:
        """Show the histories if they have changed, in a log only from time to time, and at the end."""
        columns, rows = shutil.get_terminal_size()
        lines = frame(histories, columns, rows - 1 if self._replaces else None)
        text = "\n".join(lines)
        now = time.monotonic()
        if text == self._shown or not (self._replaces or last or now >= self._due):
            return
        if self._replaces and self._lines:
            self._output.write(UP_AND_CLEAR.format(self._lines))
        self._output.write(f"{text}\n")
        self._output.flush()
        self._lines, self._shown, self._due = len(lines), text, now + EVERY_IN_A_LOG
