"""The automations in docs/, as Prefect's server parses and renders them."""

import json
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore
from prefect.server.utilities.user_templates import render_user_template_sync
from prefect.states import Crashed, Failed, State
from ruamel.yaml import YAML

from tests.helpers import ROOT

HOSTILE = 'train failed: C:\\new "data"\n\tFile "x.py", line 3 {{ flow_run.id }}</script>\r\x00 é 肺'


def automation_of(name: str) -> AutomationCore:
    with (ROOT / "docs" / name).open(encoding="utf-8") as file:
        return AutomationCore.model_validate(YAML(typ="safe").load(file))


@pytest.fixture(scope="module")
def automation() -> AutomationCore:
    return automation_of("automation-on-failure.yaml")


@pytest.mark.parametrize("state", [Failed(message=HOSTILE), Crashed(message=HOSTILE), Crashed()])
def test_the_payload_is_valid_json_for_any_message(automation: AutomationCore, state: State[Any]) -> None:
    (action,) = automation.actions
    assert isinstance(action, CallWebhook)
    run = FlowRun.model_validate({"flow_id": "00000000-0000-0000-0000-000000000000", "name": 'a "b"'})
    run.state = state
    text = json.loads(render_user_template_sync(action.payload, {"flow_run": run}))["text"]
    assert text == ": ".join(filter(None, ['a "b"', state.name, state.message]))


def test_a_notification_names_the_run_and_its_verdict() -> None:
    (action,) = automation_of("automation-on-verdict.yaml").actions
    assert isinstance(action, CallWebhook)
    payload = {"run": "night", "verdict": f"combined, judged against v1.0.0: {HOSTILE}"}
    event = Event(
        event="model.judged", resource={"prefect.resource.id": "cxr.model.combined"}, payload=payload
    )
    text = json.loads(render_user_template_sync(action.payload, {"event": event}))["text"]
    assert text == f"night: {payload['verdict']}"
