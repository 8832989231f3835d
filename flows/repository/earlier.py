"""Copy files that DVC tracks out of an earlier commit, from the DVC cache or else the DVC remote.

    python -m flows.repository.earlier CHECKOUT COMMIT artifacts/evaluation images.csv TO

DVC's public API can read any commit without a checkout or a lock. Its answer may take minutes if the remote
is unavailable, so it runs in a process that can be killed.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc_data.index import DataIndexDirError

from flows.repository.git import environment
from flows.repository.retry import one_line

PROJECT = Path(__file__).parents[2]

#: Seconds after which the copying ends, whatever is missing.
TIMEOUT = 60.0

#: DVC settings with which it reads only from the cache.
WITHOUT_REMOTE = {"core": {"remote": ""}}


def copy_files(
    checkout: Path, commit: str, folder: str, name: str, to: Path, timeout: float = TIMEOUT
) -> str:
    """Copy each file FOLDER/*/NAME of a commit to TO/*/NAME, if the DVC cache or remote has it.

    Creates the folder TO/* for a file that is missing too.

    Args:
        checkout: A checkout of the repository, whose DVC settings apply.
        commit: The commit.
        folder: The folder, relative to the checkout, that holds a tracked folder for each file.
        name: The name of the files.
        to: Where the copies go.
        timeout: Seconds after which the copying ends. Files that were already copied stay.

    Returns:
        What went wrong, in one line. Empty also if some files are nowhere to be found.
    """
    command = (sys.executable, "-m", "flows.repository.earlier", checkout, commit, folder, name, to)
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,  # where the module can be imported
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout:g} s"
    return (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1] if done.returncode else ""


def _copy(checkout: Path, commit: str, folder: str, name: str, to: Path) -> None:
    cached = DVCFileSystem(checkout, rev=commit, config=WITHOUT_REMOTE)
    places = {place: to / Path(place).name / name for place in _folders(cached, folder)}
    for copy in places.values():
        copy.parent.mkdir(parents=True, exist_ok=True)
    # First all that the cache has, so that none of it depends on the remote.
    for files in (cached, DVCFileSystem(checkout, rev=commit)):
        missing = {place: copy for place, copy in places.items() if not copy.exists()}
        for place, copy in missing.items():
            _copy_one(files, f"{place}/{name}", copy)


def _folders(files: DVCFileSystem, folder: str) -> Iterator[str]:
    if files.isdir(folder):
        yield from (each["name"] for each in files.ls(folder) if each["type"] == "directory")


def _copy_one(files: DVCFileSystem, path: str, copy: Path) -> None:
    """Copy a file, if it is found. Other errors end the copying: they would occur again for every file."""
    try:
        content = files.read_bytes(path)
    except Exception as error:  # each storage has its own errors
        if _is_missing(error):
            return
        raise
    partial = copy.with_name(f".{copy.name}.partial")
    partial.write_bytes(content)
    partial.replace(copy)


def _is_missing(error: BaseException | None) -> bool:
    """Return whether data is missing. DVC wraps this error for the list of a tracked folder."""
    while error is not None:
        if isinstance(error, FileNotFoundError):
            return True
        error = error.__cause__
    return False


if __name__ == "__main__":
    try:
        checkout, commit, folder, name, to = sys.argv[1:]
        _copy(Path(checkout), commit, folder, name, Path(to))
    except DataIndexDirError as error:  # its message only names the folder
        sys.exit(one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error))
    except Exception as error:
        sys.exit(one_line(error))
