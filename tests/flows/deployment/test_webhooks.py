"""The automation on a verdict, on a real Prefect server that calls a real webhook."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect import flow
from prefect.blocks.webhook import Webhook
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deployment.events import report_verdict
from tests.fileserver import serving_requests
from tests.flows.server import User
from tests.helpers import ROOT, Repository, eventually

#: The model in the events of this test. Other tests use the same server.
MODEL = "called"

VERDICT = 'called, judged against the champion v1.0.0: The challenger "passed".'


class Called(BaseHTTPRequestHandler):
    """A chat that receives messages."""

    messages: list[tuple[str, str | None, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.messages.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[tuple[str, list[tuple[str, str | None, str]]]]:
    """Its address, and what it has received."""
    handler = type("Handler", (Called,), {"messages": []})
    with serving_requests(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}/hooks/42", handler.messages


@flow
def judge(run: str) -> None:
    """Emit a verdict as a run of `retrain` does."""
    report_verdict(
        MODEL,
        run=run,
        commit="0" * 40,
        champion="v1.0.0",
        passed=True,
        verdict=VERDICT,
        promotion="ask",
    )


def test_a_verdict_calls_the_webhook_once(
    prefect_api: tuple[str, Path],
    prefect_server: None,
    chat: tuple[str, list[tuple[str, str | None, str]]],
    tmp_path: Path,
) -> None:
    (api, _), (address, messages) = prefect_api, chat
    text = (ROOT / "docs" / "automation-on-verdict.yaml").read_text(encoding="utf-8")
    with temporary_settings({PREFECT_API_URL: api}), closing(User(api)) as user:
        block = Webhook(url=address, headers={"Content-Type": "application/json"})
        block_id = block.save("chat", overwrite=True)
        text = text.replace("00000000-0000-0000-0000-000000000000", str(block_id))
        # Only the verdicts of this test.
        (tmp_path / "automation.yaml").write_text(text.replace("cxr.model.*", f"cxr.model.{MODEL}"))
        output = Repository(tmp_path).run("prefect", "automation", "create", "--from-file", "automation.yaml")
        assert "Created" in output
        (automation,) = user.client.read_automations_by_name("Tell us when a network waits for a decision")
        try:
            judge("night")
            eventually(f"the webhook is called: {messages}", lambda: messages)
            judge("morning")
            eventually(f"the webhook is called again: {messages}", lambda: len(messages) > 1)
        finally:
            user.client.delete_automation(automation.id)

    texts = [json.loads(body) for _, _, body in messages]
    assert texts == [{"text": f"night: {VERDICT}"}, {"text": f"morning: {VERDICT}"}]
    assert {(path, kind) for path, kind, _ in messages} == {("/hooks/42", "application/json")}
