"""Write a file to the default DVC remote, read it and delete it.

    python -m flows.checks.remote_probe REPOSITORY

A remote may take minutes to refuse, so this runs in a process that can be killed.
"""

import sys
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.repository.dvc_internals import get_file, open_repo, remote_files
from flows.repository.retry import one_line


def probe(repository: Path) -> None:
    with open_repo(repository) as repo, TemporaryDirectory() as folder:
        files, root = remote_files(repo)
        there, sent = files.join(root, f"retrain-doctor-{uuid.uuid4().hex}"), Path(folder, "sent")
        sent.write_bytes(uuid.uuid4().bytes)
        files.makedirs(root)
        files.put_file(str(sent), there)
        try:
            received = Path(folder, "received", "file")
            get_file(files, there, received)
            if received.read_bytes() != sent.read_bytes():
                sys.exit("it returns other bytes than it was given")
        finally:
            files.rm_file(there)


if __name__ == "__main__":
    try:
        probe(Path(sys.argv[1]))
    except Exception as error:  # each storage has its own errors
        sys.exit(one_line(error))
