"""Versions of models, and which of them is the champion.

versions(repository)                          every version of every model
find(repository, "combined#champion")         one of them
promote(repository, "retrain/night", "combined", reason="...", by="...")
rollback(repository, "combined", reason="...", by="...")
fetch(repository, "combined@v1.1.0", Path("bundles/combined-v1.1.0"))
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from gto.constants import Action, parse_shortcut

from flows.registry.bundles import copy_bundle, prepare, recorded_hash, transfer
from flows.registry.foreign import foreign
from flows.registry.tags import Event, create, delete, one_line, read_events
from flows.repository.git import git, resolve
from flows.repository.refs import ORIGIN, has_origin, push_refs, refs_at_origin
from tasks.bundles.files import BUNDLE_FILE
from tasks.bundles.schema import open_bundle
from tasks.support.cli import InputError

#: Folder in the repository for fetched bundles, ignored by git and DVC.
FETCHED = "bundles"

#: The stage of the version in use.
CHAMPION = "champion"

#: Trailers of the tags' messages.
BY, DIGEST, VERDICT, BEFORE = "Promoted-By", "Bundle-SHA256", "Verdict", "Rolled-Back-From"

#: Names of models, as in `tasks.bundles.schema`, that GTO accepts.
MODEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?")


class Version(NamedTuple):
    """A registered version of a model."""

    model: str
    version: str
    """Such as v1.2.0."""
    commit: str
    registered: datetime
    author: str
    message: str
    digest: str
    """SHA-256 of bundle.json. Empty if the tag does not say it, as one of `gto register`."""
    stages: tuple[str, ...]
    """The stages that this version has now."""

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"


class Change(NamedTuple):
    """A promotion, a rollback, or the cancellation of an assignment."""

    model: str
    version: str | None
    """None if the commit has no version, as after `gto assign --skip-registration`."""
    stage: str
    action: str
    """promoted, rolled back or cancelled."""
    at: datetime
    by: str
    reason: str
    verdict: str
    commit: str
    tag: str


def versions(repository: Path, model: str | None = None) -> list[Version]:
    """Return the versions that were not cancelled, by model, oldest first."""
    return _versions(read_events(repository), model)


def find(repository: Path, reference: str) -> Version:
    """Return the version that a reference names.

    Args:
        repository: The repository.
        reference: NAME, its champion or else its latest version; NAME@v1.2.0, NAME@latest or NAME#STAGE; or
            `champion`, if only one model has one.

    Raises:
        InputError: there is no such version, or several models have a champion.
    """
    return _find(versions(repository), reference)


def champion(repository: Path, model: str | None = None) -> Version | None:
    """Return the champion of a model, or of the only model that has one. None if there is none.

    Raises:
        InputError: no model is named, and several have a champion.
    """
    found = [version for version in versions(repository, model) if CHAMPION in version.stages]
    if len(found) > 1:
        names = ", ".join(f"{version.model}#{CHAMPION}" for version in found)
        raise InputError(f"several models have a champion; name one of {names}")
    return found[0] if found else None


def history(repository: Path, model: str) -> list[Change]:
    """Return the changes of a model's stages, newest first."""
    events = [event for event in read_events(repository) if event.model == model]
    names = {event.commit: event.version for event in events if event.action is Action.REGISTER}
    return [_change(event, names.get(event.commit)) for event in reversed(events) if event.stage]


def fetch(source: Path | str, reference: str, to: Path) -> Path:
    """Write the bundle of a version to a folder, and verify it.

    Args:
        source: This repository, as a path; or the URL or path of another one, as text. Its configuration is
            not trusted.
        reference: As in `find`.
        to: The folder. If it has this version's bundle already, nothing is done.

    Raises:
        InputError: there is no such version, its data is missing or not what the tag says, or the folder
            holds something else.
    """
    return _fetch_to(source, reference, lambda _: to)


def fetch_named(source: Path | str, reference: str, below: Path) -> Path:
    """Write the bundle of a version to the folder NAME-VERSION below a folder, as `fetch`."""
    return _fetch_to(source, reference, lambda version: below / local_name(version))


def local_name(version: Version) -> str:
    """Return the name of the folder for a version's bundle, such as combined-v1.2.0."""
    return f"{version.model}-{version.version}"


def promote(repository: Path, revision: str, model: str, reason: str, by: str, verdict: str = "") -> Version:
    """Make the bundle of a revision the champion. Registers a version for it if it has none.

    Does nothing if it is the champion already.

    Args:
        repository: The repository.
        revision: A branch, tag or commit, such as retrain/NAME, or a reference as in `find`.
        model: The experiment whose bundle it is.
        reason: Why, as one line.
        by: Who, as one line.
        verdict: What the comparison with the champion said, as one line.

    Raises:
        InputError: there is no such revision or bundle, or its data is missing or damaged.
    """
    _check_model(model)
    version = _registered(repository, revision, model)
    if version is None:
        version = _register(repository, resolve(repository, revision), model, reason, by)
    if CHAMPION in version.stages:
        return version
    trailers = {VERDICT: verdict, BY: by, DIGEST: version.digest}
    return _assign(repository, version, f"Promote {version.name} to {CHAMPION}", reason, trailers)


def rollback(repository: Path, model: str, reason: str, by: str) -> Version:
    """Make the champion before the present one champion again. A second rollback goes one further back.

    Raises:
        InputError: there was no champion before.
    """
    _check_model(model)
    events = [event for event in read_events(repository) if event.model == model]
    known = {version.commit: version for version in _versions(events)}
    now = next((version for version in known.values() if CHAMPION in version.stages), None)
    earlier = [
        commit for commit in _champions(events) if commit in known and (not now or commit != now.commit)
    ]
    if not earlier:
        raise InputError(f"{model}: there is no earlier champion")
    before = known[earlier[-1]]
    trailers = {BEFORE: now.version if now else "none", BY: by, DIGEST: before.digest}
    return _assign(repository, before, f"Roll {model} back to {before.version}", reason, trailers)


def tags_of(repository: Path, version: Version) -> list[str]:
    """Return the tag that registers a version, and the latest one that assigns a stage to it."""
    ours = [e for e in read_events(repository) if e.model == version.model and e.commit == version.commit]
    registering = [event.tag for event in ours if event.action is Action.REGISTER]
    assigning = [event.tag for event in ours if event.action is Action.ASSIGN]
    return registering[-1:] + assigning[-1:]


def check_origin(repository: Path, model: str) -> None:
    """Check that this repository has all tags of a model that are at origin.

    Raises:
        InputError: it lacks some, or has another tag of the same name.
    """
    if not has_origin(repository):
        raise InputError(f"--push: this repository has no git remote {ORIGIN}")
    patterns = (f"refs/tags/{model}@*", f"refs/tags/{model}#*")
    there = {line for line in refs_at_origin(repository, *patterns).splitlines() if not line.endswith("^{}")}
    here = git(repository, "for-each-ref", "--format=%(objectname)%09%(refname)", "refs/tags").splitlines()
    if missing := sorted(line.split("\t")[1].removeprefix("refs/tags/") for line in there - set(here)):
        raise InputError(
            f"{ORIGIN} has another {missing[0]} than this repository; run `git fetch --tags`, and try again"
        )


def push(repository: Path, version: Version, new: Iterable[str]) -> None:
    """Upload a version's bundle to the DVC remote, if there is one, and then push its tags to origin.

    Args:
        repository: The repository.
        version: The version.
        new: Its tags that were just made. They are deleted if origin refuses them.

    Raises:
        InputError: somebody else has pushed a tag of the same name meanwhile, or the upload or push failed.
    """
    new = list(new)
    try:
        _upload(repository, version)
        push_refs(repository, *[f"refs/tags/{tag}" for tag in tags_of(repository, version)], atomic=True)
    except InputError as error:
        delete(repository, new)
        if "already exists" in str(error):
            raise InputError(
                f"somebody else has promoted {version.model} in the meantime; run `git fetch --tags`, look "
                f"at `cxr models history {version.model}`, and try again"
            ) from None
        raise InputError(f"nothing was promoted: {error}") from None


# --- reading ------------------------------------------------------------------------------------------------


def _versions(events: list[Event], model: str | None = None) -> list[Version]:
    found = []
    for name in sorted({event.model for event in events if model in (None, event.model)}):
        ours = [event for event in events if event.model == name]
        latest = {event.version: event for event in ours if event.version}
        active = [event for event in latest.values() if event.action is Action.REGISTER]
        stages = _stages(ours)
        for event in sorted(active, key=lambda one: _numbers(one.version)):
            assert event.version
            now = tuple(sorted(stage for stage, commit in stages.items() if commit == event.commit))
            digest = event.trailers.get(DIGEST, "")
            by = event.trailers.get(BY, event.author)
            message = event.reason or event.subject
            found.append(Version(name, event.version, event.commit, event.at, by, message, digest, now))
    return found


def _numbers(version: str | None) -> tuple[int, ...]:
    """Return major, minor and patch; a pre-release comes before its release."""
    release, dash, _ = (version or "v0.0.0").removeprefix("v").partition("+")[0].partition("-")
    return (*map(int, release.split(".")), 0 if dash else 1)


def _stages(events: list[Event]) -> dict[str, str]:
    """Return the commit that has each stage of a model now."""
    found: dict[str, str] = {}
    for event in events:
        if event.stage and event.action is Action.ASSIGN:
            found[event.stage] = event.commit
        elif event.stage and found.get(event.stage) == event.commit:
            del found[event.stage]
    return found


def _champions(events: list[Event]) -> list[str]:
    """Return the commits of the champions to which rollbacks lead, the present one last."""
    found: list[str] = []
    for event in events:
        if event.stage != CHAMPION:
            continue
        if event.action is Action.ASSIGN and BEFORE in event.trailers and event.commit in found:
            while found[-1] != event.commit:
                found.pop()
        elif event.action is Action.ASSIGN:
            found.append(event.commit)
        else:
            found = [commit for commit in found if commit != event.commit]
    return found


def _change(event: Event, version: str | None) -> Change:
    action = "cancelled" if event.action is Action.UNASSIGN else "promoted"
    if BEFORE in event.trailers:
        action = "rolled back"
    by, verdict = event.trailers.get(BY, event.author), event.trailers.get(VERDICT, "")
    reason, stage = event.reason or event.subject, event.stage or ""
    return Change(event.model, version, stage, action, event.at, by, reason, verdict, event.commit, event.tag)


def _find(found: list[Version], reference: str) -> Version:
    if reference == CHAMPION and all(version.model != CHAMPION for version in found):
        matching = [version for version in found if CHAMPION in version.stages]
        if len(matching) > 1:
            names = ", ".join(f"{version.model}#{CHAMPION}" for version in matching)
            raise InputError(f"several models have a champion; name one of {names}")
    else:
        parsed = parse_shortcut(reference)  # type: ignore[no-untyped-call]
        ours = [version for version in found if version.model == parsed.name]
        if parsed.latest:
            matching = ours[-1:]
        elif parsed.version:
            matching = [version for version in ours if version.version == parsed.version]
        elif parsed.stage:
            matching = [version for version in ours if parsed.stage in version.stages]
        else:
            matching = [version for version in ours if CHAMPION in version.stages] or ours[-1:]
    if not matching:
        every = [" ".join([version.name, *(f"#{stage}" for stage in version.stages)]) for version in found]
        known = (
            f"the registry has {'; '.join(every)}"
            if every
            else "nothing is registered; run `git fetch --tags`"
        )
        raise InputError(f"{one_line(reference)}: no such version: {known}")
    return matching[-1]


def _check_model(model: str) -> None:
    if not MODEL.fullmatch(model):
        raise InputError(
            f"{one_line(model)!r}: not the name of a model: letters, digits, and - or _ between them"
        )


# --- writing ------------------------------------------------------------------------------------------------


def _registered(repository: Path, revision: str, model: str) -> Version | None:
    """Return the version that a reference or the commit of a revision has."""
    ours = versions(repository, model)
    shortcut = parse_shortcut(revision)  # type: ignore[no-untyped-call]
    if shortcut.shortcut or revision == model:
        if shortcut.name != model:
            raise InputError(f"{one_line(revision)}: this is not a version of {model}")
        return _find(ours, revision)
    commit = resolve(repository, revision)
    return next((version for version in ours if version.commit == commit), None)


def _register(repository: Path, commit: str, model: str, reason: str, by: str) -> Version:
    """Register the bundle of a commit, or return the version that has the same bundle."""
    with TemporaryDirectory() as folder:
        digest = _fetch_data(repository, commit, model, Path(folder, "bundle"))
    for version in versions(repository, model):
        if version.digest == digest:
            return version
    events = [event for event in read_events(repository) if event.model == model and event.version]
    if cancelled := [event.version for event in events if event.commit == commit]:
        raise InputError(
            f"{commit[:12]} was {model}@{cancelled[-1]}, which is cancelled; promote another commit"
        )
    major, minor, *_ = max((_numbers(event.version) for event in events), default=(1, -1))
    name = f"v{major}.{minor + 1}.0"
    create(
        repository, f"{model}@{name}", commit, f"Register {model} {name}", reason, {BY: by, DIGEST: digest}
    )
    return find(repository, f"{model}@{name}")


def _assign(
    repository: Path, version: Version, subject: str, reason: str, trailers: dict[str, str]
) -> Version:
    counters = [event.counter for event in read_events(repository) if event.model == version.model]
    tag = f"{version.model}#{CHAMPION}#{max(counters, default=0) + 1}"
    create(repository, tag, version.commit, subject, reason, trailers)
    return find(repository, version.name)


def _upload(repository: Path, version: Version) -> None:
    from flows.repository.dvc_internals import open_repo, share_cache

    with open_repo(repository) as repo:
        if not repo.config["core"].get("remote"):
            return
    tracked = recorded_hash(repository, version.commit, version.model)
    with TemporaryDirectory() as folder:
        prepare(Path(folder), tracked)
        share_cache(repository, Path(folder))
        transfer("push", Path(folder))


def _fetch_to(source: Path | str, reference: str, place: Callable[[Version], Path]) -> Path:
    if isinstance(source, Path):
        version = find(source, reference)
        return _fetch(source, version, place(version))
    with foreign(source) as (clone, settings):
        version = find(clone, reference)
        return _fetch(clone, version, place(version), settings)


def _fetch(repository: Path, version: Version, to: Path, settings: str | None = None) -> Path:
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        if not version.digest or bundle_digest(to) != version.digest:
            raise InputError(f"{to}: exists, and is not the bundle of {version.name}; choose another folder")
        open_bundle(to)
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as folder:
        beside = Path(folder, "bundle")
        digest = _fetch_data(repository, version.commit, version.model, beside, settings)
        if version.digest and digest != version.digest:
            raise InputError(
                f"{version.name}: the data is not that of the tag: its {BUNDLE_FILE} has SHA-256 {digest}"
            )
        beside.replace(to)
    return to


def _fetch_data(repository: Path, commit: str, model: str, to: Path, settings: str | None = None) -> str:
    """Write the bundle of a commit to a new folder, check it, and return the digest of its bundle.json.

    Args:
        settings: DVC's configuration for the download, by default that of the repository.
    """
    tracked = recorded_hash(repository, commit, model)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, tracked)
        cache = folder / ".dvc" / "cache"
        if settings is None:
            from flows.repository.dvc_internals import open_repo, share_cache

            share_cache(repository, folder)
            with open_repo(folder) as repo:
                cache = Path(repo.cache.local_cache_dir)
        else:
            with (folder / ".dvc" / "config").open("a", encoding="utf-8") as file:
                file.write(settings)
        copy_bundle(folder, cache, tracked, to)
    bundle = open_bundle(to)
    if bundle.name != model:
        raise InputError(f"{commit[:12]}: the bundle is called {bundle.name}, not {model}")
    return bundle_digest(to)


def bundle_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's bundle.json, or nothing if it has none."""
    try:
        return hashlib.sha256((folder / BUNDLE_FILE).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""
