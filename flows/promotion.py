"""Judge the network of a run against the champion, and promote or refuse it.

A run leaves its verdict in `runs/NAME/verdict.json`. Whoever decides, the run itself or a person days later,
leaves `runs/NAME/decision.json` beside it. The registry's tags in git say which network is current.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Self

from flows.deployment.supervision import exclusive
from flows.registry.bundles import BUNDLES
from flows.registry.registry import Version, champion, check_origin, fetch, tags_of
from flows.registry.registry import promote as promote_in_registry
from flows.registry.registry import push as push_version
from flows.registry.registry import rollback as roll_back_in_registry
from flows.repository.checkout import RUNS
from flows.repository.git import git
from flows.repository.publish import PREFIX
from flows.repository.refs import ORIGIN, has_origin
from tasks.common.files import replacing
from tasks.settings.params import load_params
from tasks.support.cli import InputError

VERDICT_FILE, DECISION_FILE = "verdict.json", "decision.json"

#: The lock of decisions: two people may decide on the same verdict at the same time.
LOCK = "decision"

Decision = Literal["promoted", "refused"]

#: Who decides where no person does.
GATE = "the gate"


class Judged(NamedTuple):
    """The verdict about the network of a run."""

    model: str
    champion: str | None
    passed: bool
    lines: tuple[str, ...]
    markdown: str
    html: str
    """A section for the report's page."""


class Challenger(NamedTuple):
    """A network of a run that was judged."""

    run: str
    model: str
    """The experiment."""
    commit: str
    push: bool
    """Whether the run's branch was pushed, so that a promotion has to be pushed too."""
    champion: str | None
    """The version that it was judged against. None if there was none."""
    passed: bool
    lines: tuple[str, ...]
    """The verdict in words."""

    @classmethod
    def of(cls, judged: Judged, run: str, commit: str, push: bool) -> Self:
        return cls(run, judged.model, commit, push, judged.champion, judged.passed, judged.lines)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the challenger of a folder below runs/, or None if it has none."""
        with suppress(OSError, ValueError, TypeError):
            content: dict[str, Any] = json.loads((folder / VERDICT_FILE).read_text(encoding="utf-8"))
            return cls(**content | {"lines": tuple(content["lines"])})
        return None

    def write(self, folder: Path) -> None:
        _write_json(folder / VERDICT_FILE, self._asdict())


class Decided(NamedTuple):
    """What became of a challenger."""

    challenger: Challenger
    version: Version | None
    """The new champion. None after a refusal."""


def judge_run(repository: Path, checkout: Path) -> Judged | None:
    """Judge the network of a finished run against the champion. None if the run exports no such network.

    Raises:
        InputError: the champion's bundle cannot be had, or a bundle cannot be judged.
    """
    from tasks.gate.judge import judge  # these import pandas, which most runs do not need
    from tasks.gate.words import as_html, as_lines, as_markdown, headline

    model = load_params(checkout / "params.yaml").promotion.experiment
    if model is None or not (checkout / BUNDLES / model).exists():
        return None
    holder = champion(repository, model)
    with TemporaryDirectory() as folder:
        theirs = fetch(repository, holder.name, Path(folder) / "champion") if holder else None
        verdict = judge(checkout / BUNDLES / model, theirs, checkout)
    against = f"the champion {holder.version}" if holder else "no champion"
    title = f"{model}, judged against {against}"
    return Judged(
        model,
        holder.version if holder else None,
        verdict.passed,
        (f"{title}: {headline(verdict)}", *as_lines(verdict).splitlines()[1:]),
        f"# {title}\n\n{as_markdown(verdict)}",
        as_html(verdict, title),
    )


def is_decided(folder: Path) -> bool:
    return (folder / DECISION_FILE).exists()


def open_challengers(repository: Path) -> Iterator[Challenger]:
    """Yield the challengers that nobody has decided on, the latest first."""
    found = sorted(
        (repository / RUNS).glob(f"*/{VERDICT_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    for file in found:
        challenger = Challenger.read(file.parent)
        if challenger and not is_decided(file.parent):
            yield challenger


def decide(
    repository: Path,
    run: str,
    decision: Decision,
    *,
    by: str,
    reason: str,
    push: bool = False,
    log: Callable[[str], None],
) -> Decided:
    """Promote or refuse the challenger of a run.

    A promotion is pushed to origin if the run was.

    Raises:
        InputError: there is no such challenger, somebody has decided on it already, or it was judged against
            a network that is no longer the champion.
    """
    folder = repository / RUNS / run
    with exclusive(repository, LOCK) as lock:
        if lock is None:
            raise InputError(f"{run}: another decision is in progress; try again")
        challenger = Challenger.read(folder) if is_run_name(run) else None
        if challenger is None:
            raise InputError(f"{run!r}: no run of this name was judged; {_choices(repository)}")
        if is_decided(folder):
            raise InputError(f"{run}: {_decided(folder)}; {_choices(repository)}")
        version = _promote(repository, challenger, by, reason, push, log) if decision == "promoted" else None
        content = {
            "decision": decision,
            "by": by,
            "reason": reason,
            "version": version.version if version else None,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        _write_json(folder / DECISION_FILE, content)
    return Decided(challenger, version)


def promote_revision(
    repository: Path, revision: str, model: str | None, *, by: str, reason: str, push: bool
) -> Version:
    """Promote the network of any revision. If a run of this name waits for a decision, this decides it.

    Raises:
        InputError: the revision has no such network, or the decision is not possible.
    """
    run = revision.removeprefix(PREFIX)
    waiting = {challenger.run: challenger for challenger in open_challengers(repository)}
    if run in waiting and model in (None, waiting[run].model):
        _, version = decide(repository, run, "promoted", by=by, reason=reason, push=push, log=print)
        assert version
        return version
    model = model or load_params(repository / "params.yaml").promotion.experiment
    if model is None:
        raise InputError("promotion.experiment in params.yaml is null; name the model with --model")
    return promote(repository, revision, model, by=by, reason=reason, push=push)


def promote(
    repository: Path,
    revision: str,
    model: str,
    *,
    reason: str,
    by: str,
    verdict: str = "",
    push: bool = False,
    log: Callable[[str], None] = print,
) -> Version:
    """Make the bundle of a revision the champion, as `flows.registry.registry.promote`.

    Args:
        push: Whether to push the bundle to the DVC remote, and the tags to origin.

    Raises:
        InputError: the revision has no such bundle, or the tags cannot be made or pushed.
    """
    return _make_champion(
        repository,
        model,
        push,
        log,
        lambda: promote_in_registry(repository, revision, model, reason, by, verdict),
    )


def roll_back(
    repository: Path,
    model: str,
    *,
    reason: str,
    by: str,
    push: bool = False,
    log: Callable[[str], None] = print,
) -> Version:
    """Make the previous champion the champion again.

    Raises:
        InputError: there is no earlier champion, or the tag cannot be made or pushed.
    """
    return _make_champion(
        repository, model, push, log, lambda: roll_back_in_registry(repository, model, reason, by)
    )


def _make_champion(
    repository: Path, model: str, push: bool, log: Callable[[str], None], make: Callable[[], Version]
) -> Version:
    if push:
        check_origin(repository, model)
    before = set(git(repository, "tag", "--list").splitlines())
    version = make()
    new = [tag for tag in tags_of(repository, version) if tag not in before]
    if not new:
        log(f"{version.name} is the champion already")
    elif push:
        push_version(repository, version, new)
        log(f"{', '.join(new)} pushed to {ORIGIN}")
    elif has_origin(repository):
        log(f"to share this: git push {ORIGIN} {' '.join(f'refs/tags/{tag}' for tag in new)}")
    return version


def is_run_name(run: str) -> bool:
    """Return whether a name that a person entered can be that of a folder below runs/."""
    return Path(run).name == run and not run.startswith(".")


def _promote(
    repository: Path, challenger: Challenger, by: str, reason: str, push: bool, log: Callable[[str], None]
) -> Version:
    now = champion(repository, challenger.model)
    if (now.version if now else None) != challenger.champion:
        raise InputError(
            f"{challenger.run}: it was judged against {challenger.champion or 'no champion'}, but "
            f"{now.version if now else 'none'} is the champion now; start the run again"
        )
    return promote(
        repository,
        challenger.commit,
        challenger.model,
        reason=reason,
        by=by,
        verdict=challenger.lines[0],
        push=push or challenger.push,
        log=log,
    )


def _decided(folder: Path) -> str:
    content = json.loads((folder / DECISION_FILE).read_text(encoding="utf-8"))
    return f"{content['decision']} already, by {content['by']} at {content['at']}"


def _choices(repository: Path) -> str:
    names = [challenger.run for challenger in open_challengers(repository)]
    return f"open verdicts: {', '.join(names)}" if names else "there is no open verdict"


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
