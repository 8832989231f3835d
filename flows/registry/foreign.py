"""Another repository, read without trusting it.

DVC's own API would use the configuration that the repository brings, and some of its settings run commands:
a WebDAV remote has `bearer_token_command`, and the file that `configpath` of an S3 remote names may have
`credential_process`. Others (`cache.dir`, `core.site_cache_dir`) choose where DVC writes. So only SETTINGS
are taken, for remotes of three kinds.

A password in the repository's URL reaches git only by a credential helper that reads it from the environment.
In the URL, it would be in the clone's configuration, and on the command line of git's own processes, which
every user of this machine can read.
"""

import os
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from flows.repository.git import GitError, git
from flows.repository.refs import ORIGIN, ORIGIN_TIMEOUT
from tasks.support.cli import InputError, user_path, without_secrets

#: Settings of a DVC remote that name a place or a credential. None of them names a file or a command.
SETTINGS = (
    "url",
    "endpointurl",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "allow_anonymous_login",
)

#: Remotes elsewhere. Folders are taken from repositories on this machine only.
SCHEMES = ("s3://", "https://", "http://")

#: Variables of the credential helper, and the helper. git calls it with the word get, store or erase.
USER, PASSWORD = "CXR_GIT_USER", "CXR_GIT_PASSWORD"
HELPER = (
    f"""!f() {{ [ "$1" != get ] || printf 'username=%s\\npassword=%s\\n' "${USER}" "${PASSWORD}"; }}; f"""
)

#: Beginnings of git's lines that do not say why it failed.
BOILERPLATE = (
    "Please make sure",
    "and the repository exists",
    "fatal: Could not read from remote",
    "fatal: the remote end hung up",
    "hint:",
    "warning:",
)

#: What to do about a failure that git's message tells.
ADVICE = {
    "certificate": "GIT_SSL_CAINFO=FILE names the certificate of a private authority",
    "Permission denied (": "the server accepts none of your ssh keys",
    "Host key verification failed": "connect once with ssh, to accept the host's key",
    "could not read Username": "the server wants a password, as in https://USER:PASSWORD@HOST/PATH",
}


@contextmanager
def foreign(source: str) -> Iterator[tuple[Path, str]]:
    """Yield a temporary clone with the tagged commits of a repository, and DVC's settings for its data.

    Raises:
        InputError: it cannot be cloned, or its DVC remote is of another kind.
    """
    here = user_path(source)
    address = str(here.resolve()) if here.is_dir() else source
    if not source or address.startswith("-"):
        raise InputError(f"{source!r}: not the address of a repository")
    with TemporaryDirectory() as folder, _password_in_environment(address) as address:
        clone = Path(folder)
        git(clone, "init", "--quiet", "--bare")
        git(clone, "remote", "add", ORIGIN, address)
        # Only the tagged commits, and only those files that are read.
        command = ("fetch", "--quiet", "--no-tags", "--depth=1", "--filter=blob:none")
        try:
            git(clone, *command, ORIGIN, "+refs/tags/*:refs/tags/*", timeout=ORIGIN_TIMEOUT)
        except GitError as error:
            raise InputError(f"{without_secrets(source)}: {_why(str(error))}") from None
        yield clone, _settings(clone, here.resolve() if here.is_dir() else None)


@contextmanager
def _password_in_environment(address: str) -> Iterator[str]:
    """Have git take the password of a URL from this process's environment. Yields the URL without it.

    The user's own credential helpers are not used then: git would have them store the password.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise InputError(f"{without_secrets(address)}: not the address of a repository") from None
    if parts.scheme not in ("http", "https") or parts.password is None:
        yield address
        return
    user, password = unquote(parts.username or ""), unquote(parts.password)
    if not (user + password).isprintable():
        raise InputError(f"{without_secrets(address)}: its user or password has an unprintable character")
    host = parts.netloc.rpartition("@")[2]
    settings = (("credential.helper", ""), (f"credential.{parts.scheme}://{host}.helper", HELPER))
    known = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
    variables = {USER: user, PASSWORD: password, "GIT_CONFIG_COUNT": str(known + len(settings))}
    for number, (key, value) in enumerate(settings, known):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield parts._replace(netloc=host).geturl()
    finally:
        for name, earlier in before.items():
            os.environ.pop(name) if earlier is None else os.environ.update({name: earlier})


def _why(message: str) -> str:
    """Return the line of git's message that says why it failed, and what to do about it."""
    lines = [" ".join(line.split()) for line in message.removeprefix("git fetch: ").splitlines()]
    telling = [line for line in lines if line and not line.startswith(BOILERPLATE)]
    why = (telling or lines)[-1].removeprefix("fatal: ")
    advice = [text for words, text in ADVICE.items() if words in why]
    return "; ".join([why, *advice])


def _settings(clone: Path, here: Path | None) -> str:
    """Return DVC's settings for the default remote of a repository.

    It is the one that the latest tagged commit names, or, on this machine, the repository's own files.
    """
    texts = []
    if here:
        for name in ("config", "config.local"):
            with suppress(FileNotFoundError, NotADirectoryError):
                texts.append((here / ".dvc" / name).read_text(encoding="utf-8"))
    else:
        newest = ("for-each-ref", "--sort=-creatordate", "--count=1", "--format=%(refname)", "refs/tags")
        with suppress(GitError):
            texts.append(git(clone, "show", f"{git(clone, *newest)}:.dvc/config"))
    values = ConfigParser(interpolation=None, strict=False)
    try:
        for text in texts:
            values.read_string("\n".join(line.strip() for line in text.splitlines()))
    except ConfigParserError:
        raise InputError("the repository's .dvc/config is invalid") from None
    name = values.get("core", "remote", fallback="")
    section = next(
        (one for one in (f"'remote \"{name}\"'", f'remote "{name}"') if values.has_section(one)), ""
    )
    kept = {key: values.get(section, key) for key in SETTINGS if section and values.has_option(section, key)}
    return _checked(kept, here)


def _checked(kept: dict[str, str], here: Path | None) -> str:
    url = kept.get("url", "")
    if not url and here:
        kept = {"url": str(here / ".dvc" / "cache")}
    elif here and "://" not in url:
        kept = {"url": str((here / ".dvc" / url).resolve())}
    elif not url.startswith(SCHEMES):
        found = without_secrets(url) or "none"
        raise InputError(f"the data is on a DVC remote that is not S3 or HTTP: {found}; clone the repository")
    elif "\n" in url:
        raise InputError("the repository's .dvc/config is invalid")
    lines = "".join(f"    {key} = {_quoted(value)}\n" for key, value in kept.items())
    return f"    remote = source\n['remote \"source\"']\n{lines}"


def _quoted(value: str) -> str:
    """Return a value as in DVC's configuration, whose comments begin with #."""
    if '"' in value:
        raise InputError("the repository's .dvc/config is invalid")
    return f'"{value}"'
