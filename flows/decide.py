"""The flows `promote` and `rollback`: a person decides in the Prefect UI which network is current.

`make serve` deploys them. On the command line, `cxr models promote`, `refuse` and `rollback` do the same.
"""

from typing import Any, Literal

import prefect.runtime
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows.deployment.deployments import update_form
from flows.deployment.events import report_champion, report_refusal
from flows.promotion import Challenger, decide, open_challengers, roll_back
from flows.registry.registry import Version
from flows.repository.git import find_repository
from flows.repository.refs import has_origin
from flows.request import PROJECT
from tasks.support.cli import InputError


def _offer_open_verdicts(schema: dict[str, Any]) -> None:
    """Offer the runs that wait for a decision. Without any, the form has a text field."""
    if names := [challenger.run for challenger in open_challengers(PROJECT)]:
        schema["enum"] = names


class Decision(BaseModel):
    """Decide whether the network of a run becomes the champion."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    challenger: str = Field(
        min_length=1,
        description="The run whose network was judged. Its artifact `retrain-verdict` shows the verdict.",
        json_schema_extra=_offer_open_verdicts,
    )
    decision: Literal["promote", "refuse"] = Field(description="What becomes of the network.")
    name: str = Field(min_length=1, max_length=100, title="Your name", description="Kept in the history.")
    reason: str = Field(min_length=1, max_length=1000, description="Why. Kept in the history.")


class Rollback(BaseModel):
    """Make the previous champion the champion again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="The experiment, such as combined.")
    name: str = Field(min_length=1, max_length=100, title="Your name", description="Kept in the history.")
    reason: str = Field(min_length=1, max_length=1000, description="Why. Kept in the history.")


@flow(name="promote")
def promote(decision: Decision) -> State[Any]:
    """Promote or refuse the network of a run.

    Args:
        decision: The run, what becomes of its network, who decides, and why.
    """
    repository, logger = find_repository(), get_run_logger()
    what: Literal["promoted", "refused"] = "promoted" if decision.decision == "promote" else "refused"
    try:
        challenger, version = decide(
            repository, decision.challenger, what, by=decision.name, reason=decision.reason, log=logger.info
        )
    except InputError as error:
        return Failed(message=str(error))
    finally:
        refresh_choices()
    if version is None:
        announce_refusal(challenger, decision.name, decision.reason)
        return Completed(name="Refused", message=f"{decision.challenger} refused by {decision.name}")
    announce("model.promoted", version, decision.name, decision.reason)
    return Completed(name="Promoted", message=f"{version.model} {version.version} is the champion")


@flow(name="rollback")
def rollback(request: Rollback) -> State[Any]:
    """Make the previous champion the champion again.

    Args:
        request: The model, who decides, and why.
    """
    repository, logger = find_repository(), get_run_logger()
    try:
        version = roll_back(
            repository,
            request.model,
            reason=request.reason,
            by=request.name,
            push=has_origin(repository),
            log=logger.info,
        )
    except InputError as error:
        return Failed(message=str(error))
    announce("model.rolled-back", version, request.name, request.reason)
    return Completed(name="Rolled back", message=f"{version.model} {version.version} is the champion again")


def announce(event: str, version: Version, by: str, reason: str) -> None:
    """Show a new champion in the UI, and emit the event. Git has it already, so failures are only logged."""
    logger = get_run_logger()
    logger.info("%s %s is the champion", version.model, version.version)
    text = (
        f"# {version.model} {version.version} is the champion\n\nBy {by}: {reason}\n\nCommit {version.commit}"
    )
    try:
        create_markdown_artifact(text, key=f"champion-{version.model.lower().replace('_', '-')}")
        report_champion(event, version, by, reason)
    except Exception as error:  # the server is unavailable
        logger.warning("could not show the champion in the UI: %s", error)


def announce_refusal(challenger: Challenger, by: str, reason: str) -> None:
    """Emit the event of a refusal. runs/ has it already, so a failure is only logged."""
    try:
        report_refusal(challenger.model, challenger.run, challenger.commit, by, reason)
    except Exception as error:  # the server is unavailable
        get_run_logger().warning("could not emit the event of the refusal: %s", error)


def refresh_choices() -> None:
    """Update the choices in the form of `promote`, if this run belongs to a deployment."""
    name, api = prefect.runtime.deployment.name, get_current_settings().api.url
    if name and api:
        try:
            update_form(api, promote, name)
        except Exception as error:  # the server is unavailable; the form accepts no older choice twice
            get_run_logger().warning("could not update the choices of the deployment promote: %s", error)
