"""Annotated git tags in the format of GTO (https://dvc.org/doc/gto): read, written and verified.

combined@v1.2.0          registers a version of the model `combined` at a commit
combined#champion#3      assigns the stage `champion` to the commit; 3 counts the model's assignments
combined@v1.2.0!         cancels the version
combined#champion!#4     cancels the assignment
"""

import os
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from gto.constants import Action
from gto.tag import parse_name

from flows.repository.git import UNATTENDED, GitError, author_options, environment, git, run
from tasks.support.cli import InputError, without_secrets

#: Fields of a tag, for `git for-each-ref`. `*` stands for the tagged commit.
FIELDS = (
    "refname:strip=2",
    "tag",
    "*objecttype",
    "*objectname",
    "taggerdate:unix",
    "taggername",
    "taggeremail",
    "contents:subject",
    "contents:body",
    "contents:trailers:only,unfold",
)


class Event(NamedTuple):
    """A tag of the registry."""

    tag: str
    action: Action
    model: str
    version: str | None
    stage: str | None
    counter: int
    """0 for tags without one."""
    commit: str
    at: datetime
    author: str
    subject: str
    reason: str
    trailers: Mapping[str, str]


def one_line(text: str) -> str:
    """Return text as one line of printable characters, safe as a trailer and in a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def read_events(repository: Path) -> list[Event]:
    """Return the registry's tags, oldest first.

    Only annotated tags count, and only under the name that they were written for: a ref could give an old
    tag, with its signature, another name. If `registry.requireSigned` is set in git's configuration, only
    tags that `git verify-tag` accepts count.
    """
    layout = "".join(f"%({field})%00" for field in FIELDS)
    # Other tags of the repository, and names of people, may be in another encoding than UTF-8.
    listed = git(repository, "for-each-ref", f"--format={layout}", "refs/tags", errors="replace")
    fields = listed.split("\0")[:-1]
    size = len(FIELDS)
    records = [fields[start : start + size] for start in range(0, len(fields), size)]
    events = [event for record in records if (event := _parse(record))]
    if is_set(repository, "registry.requireSigned"):
        events = [event for event in events if _is_signed(repository, event.tag)]
    return sorted(events, key=lambda event: (event.at, event.counter))


def is_set(repository: Path, name: str) -> bool:
    """Return whether a boolean setting of git is true."""
    try:
        return git(repository, "config", "--type=bool", "--get", name) == "true"
    except GitError:
        return False


def _parse(record: list[str]) -> Event | None:
    ref, written_as, kind, commit, seconds, name, email, subject, body, trailers = record
    ref = ref.removeprefix("\n")  # the end of the previous record
    parsed = parse_name(ref, raise_on_fail=False)
    if not parsed or written_as != ref or kind != "commit" or "action" not in parsed or not seconds:
        return None
    if not parsed["name"].replace("-", "").replace("_", "").isalnum():  # it becomes the name of a folder
        return None
    try:
        at = datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):  # no date of this calendar
        return None
    found = (line.partition(": ") for line in trailers.splitlines())
    return Event(
        ref,
        parsed["action"],
        parsed["name"],
        parsed.get("version"),
        parsed.get("stage"),
        parsed.get("counter", 0),
        commit,
        at,
        one_line(f"{name} {email}"),
        one_line(subject),
        one_line(body.removesuffix(trailers)),
        {one_line(key): one_line(value) for key, _, value in found},
    )


def _is_signed(repository: Path, tag: str) -> bool:
    try:
        git(repository, "verify-tag", f"refs/tags/{tag}")
    except GitError:
        return False
    return True


def create(
    repository: Path, tag: str, commit: str, subject: str, reason: str, trailers: Mapping[str, str]
) -> None:
    """Write an annotated tag. It is signed if `tag.gpgSign` is true; git may then ask for a password.

    Its date is later than those of all earlier tags of the registry, because GTO orders tags by their dates,
    which are in seconds, and clocks differ between machines.

    Raises:
        InputError: the tag exists, or could not be signed.
    """
    lines = [f"{key}: {one_line(value)}" for key, value in trailers.items() if one_line(value)]
    # The trailers of a message are its last paragraph, which no text of a user reaches.
    message = "\n\n".join(part for part in (one_line(subject), _body(reason), "\n".join(lines)) if part)
    latest = max((int(event.at.timestamp()) for event in read_events(repository)), default=0)
    date = f"{max(int(time.time()), latest + 1)} +0000"
    signed = is_set(repository, "tag.gpgSign")
    command = [*UNATTENDED, *author_options(repository), "tag", "--sign" if signed else "--annotate"]
    command += ["--cleanup=verbatim", f"--message={message}\n", tag, commit]
    if not signed:
        run(repository, "git", *command, LC_ALL="C", GIT_COMMITTER_DATE=date)
        return
    done = subprocess.run(  # in the terminal's session, so that ssh and gpg can ask for a password
        ["git", *command],
        cwd=repository,
        env=environment() | {"LC_ALL": "C", "GIT_COMMITTER_DATE": date},
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        text = without_secrets(one_line(done.stderr.decode(errors="replace")))
        raise InputError(f"{tag}: git could not sign the tag: {text}")


def _body(reason: str) -> str:
    """Return the paragraph of the reason. git takes a line of dashes for the end of the message."""
    text = one_line(reason)
    return f" {text}" if text.startswith("---") else text


def delete(repository: Path, tags: list[str]) -> None:
    if tags:
        git(repository, "tag", "--delete", *tags)


def whoami(repository: Path) -> str:
    """Return the name and email that git knows for the user, or the user's login name."""
    try:
        return git(repository, "var", "GIT_COMMITTER_IDENT").rpartition(" ")[0].rpartition(" ")[0]
    except GitError:
        return os.environ.get("USER", "unknown")
