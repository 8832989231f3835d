"""The user's repository, which has the files that are not in git, such as the data source and checkpoints.

A stage may run in a copy of it: a run has a checkout of its own, and so has an experiment that DVC starts by
`dvc exp run --temp` or `dvc queue start`.
"""

import os
from pathlib import Path

#: Environment variable with the path of the repository. Runs set it.
VARIABLE = "RETRAIN_SOURCE_ROOT"

#: The folder of the repository in which DVC makes the copies for its experiments.
EXPERIMENTS = Path(".dvc/tmp/exps")


def user_repository() -> Path:
    """The repository from which relative paths count: by default the current folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    # DVC makes the copies for `--temp` one folder deeper than those for the queue.
    for folder in Path.cwd().parents:
        if folder.parts[-3:] == EXPERIMENTS.parts:
            return folder.parents[2]
    return Path()
