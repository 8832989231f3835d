"""Run the command of a stage without DVC, so that nothing enters the DVC cache or the run cache."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from dvc.stage import PipelineStage

from flows.repository.stage_environment import stage_environment
from tasks.support.cli import InputError
from tasks.support.slots import Slot

#: What a stage gets that needs neither a GPU nor cores of its own.
NO_SLOT = Slot({}, ())


class Command(NamedTuple):
    """How a stage runs."""

    stage: str
    lines: tuple[str, ...]
    outs: tuple[Path, ...]
    """Absolute paths of its outputs."""


def command_of(stage: PipelineStage) -> Command:
    lines = (stage.cmd,) if isinstance(stage.cmd, str) else tuple(stage.cmd)
    return Command(stage.name, lines, tuple(Path(out.fs_path) for out in stage.outs))


def rerun(checkout: Path, command: Command, slot: Slot = NO_SLOT, **variables: str) -> None:
    """Remove the outputs of a stage in a checkout, and run its command there.

    What it prints goes to the terminal. `variables` are additional environment variables.

    Raises:
        InputError: the command failed. It has printed the reason.
    """
    for path in command.outs:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    print(f"Running stage '{command.stage}':", flush=True)
    environment = stage_environment(command.stage) | {"PYTHONDONTWRITEBYTECODE": "1"} | variables
    for line in command.lines:
        print(f"> {line}", flush=True)
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=checkout,
            env=environment | slot.variables,
            stdin=subprocess.DEVNULL,
            pass_fds=slot.locks,
            check=False,
        )
        if done.returncode:
            raise InputError(f"{command.stage} failed with exit status {done.returncode}")
