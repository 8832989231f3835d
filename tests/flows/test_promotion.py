"""From a run to the champion: judged, promoted by the gate or by a person, refused, and taken back."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows.inbox import find_model
from flows.registry.registry import champion, history
from tests.flows.server import User
from tests.helpers import Repository, eventually, retrain

pytestmark = pytest.mark.usefixtures("prefect_server")

MODEL = "report1_bce"

#: A promotion of a network on few and small images. With four controls, intervals are wide.
SETTINGS = (
    f"export.experiments=[{MODEL}]",
    f"promotion.experiment={MODEL}",
    "promotion.least_images=2",
    "promotion.leaks=1.0",
    "promotion.margin=0.9",
    "promotion.false_alarms=0.9",
    "promotion.false_alarms_by_class=0.9",
    "data.source=phantom://60?size=32",
)
UNTRAINED, TRAINED = ("epochs=1", "training.learning_rate=0.0000001"), ("epochs=30",)


@pytest.fixture(scope="module")
def repository(
    make_repository: Callable[[Path], Repository], tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    repository = make_repository(tmp_path_factory.mktemp("promotion"))
    repository.set(*SETTINGS)
    repository.commit("Promote on few images")
    return repository


def run(repository: Repository, name: str, promotion: str, *changes: str) -> str:
    sets = [word for change in changes for word in ("--set", change)]
    options = ["--experiments", MODEL, "--promotion", promotion]
    return retrain(repository, "--name", name, *options, *sets)


def champion_commit(repository: Repository) -> str:
    found = champion(repository.folder)
    assert found
    return found.commit


def commit_of(repository: Repository, branch: str) -> str:
    return repository.run("git", "rev-parse", branch).strip()


class TestInOrder:
    """The tests build on each other."""

    def test_the_gate_makes_the_first_network_the_champion(self, repository: Repository) -> None:
        output = run(repository, "first", "if better", *UNTRAINED)
        assert f"{MODEL} v1.0.0 is the champion" in output
        assert champion_commit(repository) == commit_of(repository, "retrain/first")
        message = repository.run("git", "log", "-1", "--format=%B", "retrain/first")
        assert f"{MODEL}, judged against no champion: The challenger may be the first champion." in message

    def test_a_person_promotes_a_better_network(self, repository: Repository) -> None:
        output = run(repository, "better", "ask", *TRAINED)
        assert "the deployment `promote` waits for a decision on better" in output
        assert champion_commit(repository) == commit_of(repository, "retrain/first")
        output = repository.run("cxr", "models", "promote", "retrain/better", "--reason", "finds lesions")
        assert f"{MODEL}@v1.1.0 is the champion" in output
        assert champion_commit(repository) == commit_of(repository, "retrain/better")
        latest = history(repository.folder, MODEL)[0]
        assert (latest.reason, latest.by) == ("finds lesions", "Tester <tester@example.org>")
        assert "judged against the champion v1.0.0: The challenger passed." in latest.verdict
        repeated = repository.run("cxr", "models", "refuse", "better", "--reason", "no", fails=True)
        assert "better: promoted already, by Tester <" in repeated

    def test_the_gate_refuses_a_worse_network(
        self, repository: Repository, prefect_api: tuple[str, Path]
    ) -> None:
        run(repository, "worse", "if better", *UNTRAINED, "training.seed=1")
        assert champion_commit(repository) == commit_of(repository, "retrain/better")
        decision = json.loads(repository.read("runs/worse/decision.json"))
        assert (decision["decision"], decision["by"]) == ("refused", "the gate")
        verdict = json.loads(repository.read("runs/worse/verdict.json"))
        assert any("main score" in line and "FAILED" in line for line in verdict["lines"])
        with closing(User(prefect_api[0])) as user:
            body = {"filter": {"event": {"name": ["model.refused"]}}}

            def emitted() -> list[Any]:
                events = user.client._client.post("/events/filter", json=body).json()["events"]
                return [event["payload"] for event in events if event["payload"]["run"] == "worse"]

            (payload,) = eventually("the event arrives", emitted)
        commit = commit_of(repository, "retrain/worse")
        assert payload == {"run": "worse", "commit": commit, "by": "the gate", "reason": verdict["lines"][0]}

    def test_a_rollback_and_the_network_in_use(self, repository: Repository) -> None:
        repository.run("cxr", "models", "rollback", MODEL, "--reason", "marks pacemakers")
        assert champion_commit(repository) == commit_of(repository, "retrain/first")
        first = repository.run("cxr", "models", "list").splitlines()[1]
        metrics = json.loads(repository.run("git", "show", "retrain/first:metrics.json"))
        score = metrics[MODEL]["val"]["infection"]["all"]["balanced"]
        assert "champion" in first and f"val.infection.all.balanced {score:.4f}" in first
        xrays = str(next((repository.folder / "runs").glob("*")))  # no image in it
        failed = repository.run("cxr", "predict", xrays, "--model", "champion", "--out", "out", fails=True)
        assert "no image found" in failed
        assert (repository.folder / f"bundles/{MODEL}-v1.0.0/bundle.json").exists()
        (repository.folder.parent / "arriving").mkdir()
        output = repository.run("cxr", "inbox", "../arriving", "--model", "champion", "--out", "../batches")
        assert output == "nothing new\n"
        other = find_model(repository.folder, f"{MODEL}@v1.1.0")
        assert other == repository.folder / f"bundles/{MODEL}-v1.1.0" and (other / "bundle.json").exists()

    def test_results_that_are_not_published_cannot_be_promoted(self, repository: Repository) -> None:
        output = retrain(repository, "--promotion", "ask", "--publish", "nowhere", fails=True)
        assert "needs a published branch" in output
