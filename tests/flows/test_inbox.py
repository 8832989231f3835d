"""The flow that predicts what is new in an inbox, as `cxr serve` deploys it."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun
from prefect.client.schemas.schedules import CronSchedule

from flows.deployment.drift import DRIFT
from flows.inbox import REPORTED
from flows.serve import DRIFT_AUTOMATION
from tests.bundles import Pipeline
from tests.drifting import NEW, chests, fill, inverted, put, with_reference
from tests.flows.conftest import Served
from tests.helpers import eventually


@pytest.fixture(scope="module")
def request_(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("arriving")
    model = with_reference(pipeline.bundle("combined"), folder / "bundle")
    return {"inbox": str(folder / "inbox"), "results": str(folder / "results"), "model": str(model)}


def submit(served: Served, **request: Any) -> FlowRun:
    deployment = served.client.read_deployment_by_name("predict/retrain")
    run = served.client.create_flow_run_from_deployment(deployment.id, parameters={"request": request})
    return served.finished(run.id)


def events(served: Served) -> list[dict[str, Any]]:
    body = {"filter": {"event": {"name": [DRIFT]}}}
    found: list[dict[str, Any]] = served.client._client.post("/events/filter", json=body).json()["events"]
    return found


class TestInOrder:
    def test_the_schedule_and_the_automation_are_off(self, served: Served) -> None:
        deployment = served.client.read_deployment_by_name("predict/retrain")
        (schedule,) = deployment.schedules
        assert isinstance(schedule.schedule, CronSchedule)
        assert (schedule.schedule.cron, schedule.active) == ("*/15 * * * *", False)
        assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
        assert deployment.concurrency_options
        assert deployment.concurrency_options.collision_strategy == ConcurrencyLimitStrategy.ENQUEUE
        (automation,) = served.client.read_automations_by_name(DRIFT_AUTOMATION)
        assert not automation.enabled
        retraining = served.client.read_deployment_by_name("retrain/retrain")
        assert [action.deployment_id for action in automation.actions] == [retraining.id]  # type: ignore[union-attr]

    def test_what_is_missing_fails_the_run(self, served: Served, request_: dict[str, Any]) -> None:
        run = submit(served)
        assert run.state and run.state.message
        assert run.state.message.startswith("inbox: is empty")
        run = submit(served, **request_ | {"model": ""})
        assert run.state and run.state.message
        assert run.state.is_failed()
        assert run.state.message.startswith("champion: no such version")

    def test_counts_warnings_and_drift_are_artifacts(self, served: Served, request_: dict[str, Any]) -> None:
        inbox = Path(request_["inbox"])
        fill(inbox, chests(NEW, 30))
        put(inbox / "noise.png", b"noise")
        run = submit(served, **request_)
        assert run.state and run.state.is_completed(), run.state
        found = {artifact["key"]: artifact for artifact in served.artifacts(run.id)}
        assert '"predicted": 30' in found["predict-counts"]["data"]
        assert '"failed": 1' in found["predict-counts"]["data"]
        assert "noise.png" in found["predict-warnings"]["data"]
        assert found["predict-drift"]["data"].count('"drifted": "no"') == 4
        assert events(served) == []

    def test_nothing_new_is_a_state_of_its_own(self, served: Served, request_: dict[str, Any]) -> None:
        run = submit(served, **request_)
        assert run.state and (run.state.name, run.state.is_completed()) == ("Nothing new", True)

    def test_drift_emits_one_event_and_starts_a_retraining_once_that_is_switched_on(
        self, served: Served, request_: dict[str, Any]
    ) -> None:
        inbox, results = Path(request_["inbox"]), Path(request_["results"])
        fill(inbox, map(inverted, chests(NEW, 20, seed=1)), "inverted")
        run = submit(served, **request_, last=20)
        (event,) = eventually("the event is there", lambda: events(served))
        assert event["resource"]["prefect.resource.id"] == f"prediction.results.{results}"
        assert (event["payload"]["images"], "likeness" in event["payload"]["measures"]) == (20, True)
        assert f"prefect.flow-run.{run.id}" in str(event["related"])
        eventually("the log says so", lambda: "drifted" in served.logs(run.id))  # it is sent every 5 s
        assert served.runs("retrain") == []

        submit(served, **request_, last=20)
        assert len(events(served)) == 1  # the same drift is not reported twice

        (automation,) = served.client.read_automations_by_name(DRIFT_AUTOMATION)
        served.client.resume_automation(automation.id)
        (results / REPORTED).unlink()
        submit(served, **request_, last=20)
        (retraining,) = eventually("a retraining starts", lambda: served.runs("retrain"))
        assert retraining.parameters == {"request": {"look_for_new_data": True}, "pools": {}}
        served.cancel(retraining.id)
