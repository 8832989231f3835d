"""`cxr models`: which network is current, and its history."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tasks.support.cli import InputError

if TYPE_CHECKING:
    from flows.registry.registry import Change, Version

ByOption = Annotated[str | None, Parameter(metavar="NAME")]
Reason = Annotated[str, Parameter(metavar="TEXT")]


def list_(*, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """List the registered versions of every model, each with its score on the Val split.

    Scores of different versions may be of different images. `cxr models compare` compares them on the same.

    Args:
        as_json: Print JSON.

    Examples:
        cxr models list
    """
    from flows.registry.registry import versions
    from flows.registry.scores import main_score
    from flows.repository.git import find_repository

    repository = find_repository()
    found = versions(repository)
    scores = [main_score(repository, version) for version in found]
    if as_json:
        both = zip(found, scores, strict=True)
        _print_json(
            [version._asdict() | {"score": score._asdict() if score else None} for version, score in both]
        )
        return
    rows = [
        (
            version.model,
            version.version,
            ", ".join(version.stages),
            f"{score.name} {score.value:.4f}" if score else "",
            version.commit[:10],
            f"{version.registered:%Y-%m-%d %H:%M}",
            version.author,
        )
        for version, score in zip(found, scores, strict=True)
    ]
    _print_table(("model", "version", "stage", "score", "commit", "registered", "by"), rows)


def show(
    reference: str,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Show one version: its commit, its digest, and what the registry says about it.

    Args:
        reference: NAME, NAME@v1.0.0, NAME@latest, NAME#champion, or champion.
        as_json: Print JSON.

    Examples:
        cxr models show champion
        cxr models show combined@v1.0.0
    """
    from flows.registry.registry import find, history
    from flows.repository.git import find_repository

    repository = find_repository()
    version = find(repository, reference)
    changes = [change for change in history(repository, version.model) if change.version == version.version]
    if as_json:
        _print_json(version._asdict() | {"history": [change._asdict() for change in changes]})
        return
    print(f"{version.name}{f', {version.stages[0]}' if version.stages else ''}")
    print(f"commit:  {version.commit}")
    print(f"digest:  {version.digest or 'not recorded'}")
    for change in changes:
        print(_line(change))


def get(
    reference: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    source: Annotated[str | None, Parameter(name="--from", metavar="URL")] = None,
) -> None:
    """Get the bundle of a version from the DVC cache or the DVC remote, and check it.

    Args:
        reference: NAME, NAME@v1.0.0, NAME@latest, NAME#champion, or champion.
        out: The folder to create. By default bundles/NAME-VERSION.
        source: The URL or path of another repository. None of its code is run.

    Examples:
        cxr models get champion
        cxr models get combined@v1.0.0 --out bundle
    """
    from flows.registry.registry import FETCHED, fetch, fetch_named
    from flows.repository.git import find_repository

    origin: Path | str = find_repository() if source is None else source
    if out:
        print(fetch(origin, reference, out))
    else:
        print(fetch_named(origin, reference, (Path.cwd() if source else Path(origin)) / FETCHED))


def compare(
    challenger: str,
    champion: str | None = None,
    /,
    *,
    checkout: Annotated[Path | None, Parameter(metavar="DIR")] = None,
    out: Annotated[Path | None, Parameter(metavar="FILE")] = None,
) -> None:
    """Judge whether a challenger may replace the champion.

    Runs both on the same images, and prints a line for each rule. The exit status is 0 if the challenger
    passed, and 1 otherwise.

    Args:
        challenger: The folder of a bundle, such as artifacts/bundles/combined, or a version of the registry.
        champion: Another one. Without it, the challenger is judged as the first champion.
        checkout: The checkout whose images and params.yaml are used. By default the current one.
        out: Also write the verdict to this file, as JSON.

    Examples:
        cxr models compare artifacts/bundles/combined champion
        cxr models compare combined@v1.1.0 combined@v1.0.0
    """
    from flows.commands.predict import find_bundle
    from flows.repository.git import find_repository
    from tasks.common.files import replacing
    from tasks.gate.judge import judge
    from tasks.gate.words import as_lines

    theirs = find_bundle(champion) if champion else None
    verdict = judge(find_bundle(challenger), theirs, checkout or find_repository())
    if out:
        with replacing(out) as partial:
            partial.write_text(verdict.to_json(), encoding="utf-8")
    print(as_lines(verdict), flush=True)
    if not verdict.passed:
        raise InputError(f"the challenger is not promoted: {verdict.outcome}")


def promote(
    revision: str,
    /,
    *,
    reason: Reason,
    model: Annotated[str | None, Parameter(metavar="NAME")] = None,
    by: ByOption = None,
    push: bool = False,
) -> None:
    """Make the network of a revision the champion.

    Registers it as a new version first. A verdict of the run is kept with it.

    Args:
        revision: A branch, tag or commit, such as retrain/NAME.
        reason: Why. It is kept in the history.
        model: The experiment. By default the one that `promotion.experiment` in params.yaml names.
        by: Who decides. By default your name and email address in git's configuration.
        push: Push the bundle to the DVC remote and the tags to origin.

    Examples:
        cxr models promote retrain/monday --reason "finds small lesions"
    """
    from flows.promotion import promote_revision
    from flows.registry.registry import CHAMPION, versions
    from flows.registry.tags import whoami
    from flows.repository.git import find_repository

    repository = find_repository()
    by = by or whoami(repository)
    before = [version.name for version in versions(repository) if CHAMPION in version.stages]
    version = promote_revision(repository, revision, model, by=by, reason=reason, push=push)
    print(f"{version.name} is the champion")
    if version.name not in before:
        _announce("model.promoted", version, by, reason)


def refuse(run: str, /, *, reason: Reason, by: ByOption = None) -> None:
    """Refuse the network of a run that waits for a decision.

    Args:
        run: The name of the run, such as monday.
        reason: Why.
        by: Who decides. By default your name and email address in git's configuration.

    Examples:
        cxr models refuse monday --reason "trained on damaged labels"
    """
    from flows.promotion import decide
    from flows.registry.tags import whoami
    from flows.repository.git import find_repository

    repository = find_repository()
    by = by or whoami(repository)
    challenger, _ = decide(repository, run, "refused", by=by, reason=reason, log=print)
    print(f"{run} is refused")

    def tell() -> None:
        from flows.deployment.events import report_refusal

        report_refusal(challenger.model, run, challenger.commit, by, reason)

    _tell_server(tell)


def rollback(model: str, /, *, reason: Reason, by: ByOption = None, push: bool = False) -> None:
    """Make the previous champion the champion again.

    Args:
        model: The experiment, such as combined.
        reason: Why. It is kept in the history.
        by: Who decides. By default your name and email address in git's configuration.
        push: Push the bundle to the DVC remote, if it lacks it, and the tags to origin.

    Examples:
        cxr models rollback combined --reason "marks pacemakers"
    """
    from flows.promotion import roll_back
    from flows.registry.tags import whoami
    from flows.repository.git import find_repository

    repository = find_repository()
    by = by or whoami(repository)
    version = roll_back(repository, model, by=by, reason=reason, push=push)
    print(f"{version.name} is the champion again")
    _announce("model.rolled-back", version, by, reason)


def history(
    model: str,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """List which version became champion when, by whom and why, newest first.

    Args:
        model: The experiment.
        as_json: Print JSON.

    Examples:
        cxr models history combined
    """
    from flows.registry.registry import history as read
    from flows.repository.git import find_repository

    changes = read(find_repository(), model)
    if as_json:
        _print_json([change._asdict() for change in changes])
        return
    for change in changes:
        print(_line(change))


def _announce(event: str, version: "Version", by: str, reason: str) -> None:
    def tell() -> None:
        from flows.deployment.events import report_champion

        report_champion(event, version, by, reason)

    _tell_server(tell)


def _tell_server(tell: Callable[[], None]) -> None:
    """Emit an event, if Prefect's settings name a server. If it fails, a line on stderr says so.

    What the event is about has happened already.
    """
    from flows.deployment.settings import may_name_server
    from flows.repository.retry import one_line

    if not may_name_server():
        return
    try:
        from flows.deployment.events import for_command

        with for_command() as named:
            if named:
                tell()
    except Exception as error:  # the server is unavailable, or Prefect's settings are invalid
        print(f"the event was not emitted: {one_line(error)}", file=sys.stderr)


def _line(change: "Change") -> str:
    what = f"{change.at:%Y-%m-%d %H:%M}  {change.version}  {change.action} by {change.by}: {change.reason}"
    return f"{what} ({change.verdict})" if change.verdict else what


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(content: Any) -> None:
    json.dump(content, sys.stdout, indent=1, default=str)
    print()
