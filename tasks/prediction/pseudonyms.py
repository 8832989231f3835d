"""Replaces file names, which may identify a patient, by keyed hashes."""

import hmac
import os
import secrets
from pathlib import Path

from tasks.prediction.inputs import Item
from tasks.support.cli import InputError

#: Bytes of a key; a shorter one could be guessed.
KEY_BYTES = 32
#: Hexadecimal digits of a pseudonym.
DIGITS = 20


def with_pseudonyms(items: list[Item], key_file: Path) -> list[Item]:
    """The items with pseudonyms instead of names: the HMAC-SHA256 of the name under the key.

    They are in the order of their pseudonyms, which tells nothing of the names.

    Who has the key can tell which file a pseudonym belongs to, by computing those of the files again.

    Raises:
        InputError: the key file exists and is too short.
    """
    key = _key(key_file)
    found = []
    for item in items:
        pseudonym = hmac.digest(key, item.name.encode(), "sha256").hex()[:DIGITS]
        found.append(item._replace(source=pseudonym, name=pseudonym))
    return sorted(found, key=lambda item: item.name)


def _key(file: Path) -> bytes:
    """The key in the file, which is created with a random key if it does not exist."""
    try:
        key = file.read_bytes()
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
        key = secrets.token_hex(KEY_BYTES).encode()
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as created:
            created.write(key)
    if len(key.strip()) < KEY_BYTES:
        raise InputError(f"{file}: a key for pseudonyms needs at least {KEY_BYTES} bytes")
    return key.strip()
