"""Checks of git, its settings and the repository."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from flows.checks.check import Check, Finding, fault, ok, warning
from flows.repository.git import author_options, find_repository, git, run, uncommitted
from tasks.support.cli import InputError

#: The oldest git that has all options that the project uses.
OLDEST_GIT = (2, 30)

#: The program with which git signs by default, for each value of gpg.format.
SIGNERS = {"openpgp": "gpg", "x509": "gpgsm", "ssh": "ssh-keygen"}

#: Seconds that a local git command may take.
PATIENCE = 5.0

#: Number of files that a line names.
NAMED = 3


def check_git(folder: Path) -> Iterator[Finding]:
    if not shutil.which("git"):
        yield fault("git is not installed", "install git 2.30 or newer")
        return
    text = git(folder, "--version", timeout=PATIENCE).removeprefix("git version ")
    version = tuple(int(number) for number in re.findall(r"\d+", text)[:2])
    if version < OLDEST_GIT:
        yield fault(f"git {text} is too old", "install git 2.30 or newer")
    else:
        yield ok(f"git {text}")


def check_shape(folder: Path) -> Iterator[Finding]:
    """Check that the project has a repository of its own, which runs can make worktrees of."""
    repository = find_repository(folder)
    if "%(" in str(repository):
        yield fault(f"{repository}: DVC cannot use a path with %(", "move the repository")
    try:
        git(repository, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", timeout=PATIENCE)
    except InputError:
        yield fault(f"{repository} has no commit, so no run can start", "commit the project's files")
        return
    asked = ("--is-shallow-repository", "--absolute-git-dir", "--git-common-dir")
    shallow, own, common = git(repository, "rev-parse", *asked, timeout=PATIENCE).splitlines()
    if shallow == "true":
        yield warning(
            f"{repository} is a shallow clone: earlier commits are missing, and origin may refuse branches",
            "run `git fetch --unshallow`",
        )
    elif (repository / common).resolve() != Path(own).resolve():
        yield ok(f"{repository}, a worktree of {(repository / common).resolve().parent}")
    else:
        yield ok(f"{repository}, a repository of its own")
    if _setting(repository, "core.sparseCheckout", "--type=bool") == "true":
        yield warning(
            "a sparse checkout leaves out files that runs may need", "run `git sparse-checkout disable`"
        )


def check_author(folder: Path) -> Iterator[Finding]:
    if author_options(folder):
        yield warning(
            "git does not have your name and email address: commits of runs are by retrain@localhost, "
            "and you cannot commit",
            "run `git config --global user.name NAME` and `git config --global user.email ADDRESS`",
        )
    else:
        yield ok("git has your name and email address")


def check_signing(folder: Path) -> Iterator[Finding]:
    """Check that a signing program works. Runs do not sign, but their user does."""
    if _setting(folder, "commit.gpgSign", "--type=bool") != "true":
        yield ok("commits are not signed")
        return
    kind = _setting(folder, "gpg.format") or "openpgp"
    own = _setting(folder, "gpg.program", "--type=path") if kind == "openpgp" else None
    program = _setting(folder, f"gpg.{kind}.program", "--type=path") or own or SIGNERS.get(kind, "gpg")
    if _works(folder, program, kind):
        yield ok("you sign your commits; runs do not sign theirs")
    else:
        yield warning(
            f"commit.gpgSign is set, but {program} does not work: you cannot commit; runs can, unsigned",
            "set gpg.program to a program that works, or run `git config commit.gpgSign false`",
        )


def _works(folder: Path, program: str, kind: str) -> bool:
    if kind == "ssh":  # ssh-keygen has no option that only shows its version
        return shutil.which(program) is not None and _setting(folder, "user.signingKey") is not None
    try:
        run(folder, program, "--version", timeout=PATIENCE)
    except (InputError, OSError):
        return False
    return True


def check_hooks(folder: Path) -> Iterator[Finding]:
    """List the git hooks. Runs skip them."""
    hooks = folder / run(folder, "git", "rev-parse", "--git-path", "hooks", timeout=PATIENCE)
    if _setting(folder, "core.hooksPath") and not hooks.is_dir():
        yield warning(
            f"core.hooksPath names {hooks}, which does not exist: your commits run no hooks",
            "create the folder, or run `git config --unset core.hooksPath`",
        )
        return
    found = [path for path in sorted(hooks.glob("*")) if path.is_file() and path.suffix != ".sample"]
    for path in found:
        if not os.access(path, os.X_OK):
            yield warning(f"the git hook {path.name} is not executable, so git skips it", f"chmod +x {path}")
    names = ", ".join(path.name for path in found if os.access(path, os.X_OK))
    yield ok(f"git hooks, which runs skip: {names}" if names else "no git hooks")


def check_changes(folder: Path) -> Iterator[Finding]:
    changed = uncommitted(folder)
    if not changed:
        yield ok("no uncommitted changes")
        return
    names = ", ".join(changed[:NAMED]) + (f" and {len(changed) - NAMED} more" if len(changed) > NAMED else "")
    yield warning(f"runs do not include the uncommitted changes in {names}", "commit them to include them")


def _setting(folder: Path, key: str, *options: str) -> str | None:
    """Return a setting of the user. `flows.repository.git.git` would override some of them."""
    try:
        return run(folder, "git", "config", *options, "--get", key, timeout=PATIENCE)
    except InputError:
        return None


CHECKS = (
    Check("git", check_git, before_runs=True),
    Check("repository", check_shape, before_runs=True),
    Check("author", check_author),
    Check("signatures", check_signing, limit=20),
    Check("hooks", check_hooks),
    Check("changes", check_changes, limit=20),
)
