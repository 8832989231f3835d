"""`cxr watch`: the curves of trainings, while they run."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def watch(
    *keys: Annotated[str, Parameter(name="KEY")],
    once: bool = False,
    tensorboard: Annotated[Path | None, Parameter(metavar="DIR")] = None,
) -> None:
    """Draw the losses and the Val score of running and finished trainings.

    Looks at this checkout and at the checkouts of runs, also of runs that train on other machines. Updates
    the curves until the trainings end, or until Ctrl-C. Reads files only: trainings are not slowed down.

    Args:
        keys: Trainings, such as report1_bce-seed0 or train@report1_bce-seed0, or patterns such as 'report1*'.
            By default all.
        once: Draw the curves once, and exit.
        tensorboard: Also write TensorBoard event files into this folder. Needs `pip install tensorboard`.

    Examples:
        cxr watch
        cxr watch combined-seed0
        cxr watch 'report1*' --once
        cxr watch --tensorboard runs/tensorboard
    """
    from flows.curves.watch import watch as watch_trainings
    from flows.repository.git import find_repository

    watch_trainings(find_repository(), keys, once, tensorboard)
