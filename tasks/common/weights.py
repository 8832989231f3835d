"""Reads the weights from which a training starts, if they are those that params.yaml names."""

from tasks.common.raw import sha256
from tasks.support.cli import InputError, user_path
from tasks.support.repository import user_repository


def read_weights(file: str, digest: str) -> bytes:
    """The content of a file of weights.

    Args:
        file: its path. A relative one counts from the user's repository.
        digest: its SHA-256.

    Raises:
        InputError: the file does not exist or has another SHA-256.
    """
    path = user_repository() / user_path(file)
    if not path.is_file():
        raise InputError(f"start_from.weights: {file}: there is no such file")
    content = path.read_bytes()
    if (found := sha256([content])) != digest:
        raise InputError(
            f"start_from.weights: {file}: the file does not match start_from.sha256: found {found}, "
            f"expected {digest}"
        )
    return content
