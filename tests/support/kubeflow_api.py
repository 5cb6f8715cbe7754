"""A strict stand-in for the API of Kubeflow Pipelines: it refuses what a cluster would refuse.

kubeflow_answers/ has what the API server of Kubeflow Pipelines 2.17.0 answered while the compiled
pipeline ran on it; the stub answers in these words.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.support.json_handler import JsonHandler

TOKEN = "a-valid-token"
COOKIE = "authservice_session=a-valid-session"
ANSWERS = Path(__file__).with_name("kubeflow_answers")
RUN = "11111111-2222-3333-4444-555555555555"


def recorded(name: str) -> tuple[Any, int]:
    """Return the body and the status of a recorded answer."""
    answer = json.loads((ANSWERS / f"{name}.json").read_text())
    return answer["body"], answer["status"]


class Stub(ThreadingHTTPServer):
    """What was sent, and the states that a run goes through."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: list[dict[str, Any]] = []
        self.recurring: list[dict[str, Any]] = []
        self.uploads: list[tuple[str, dict[str, list[str]]]] = []
        self.experiments: list[dict[str, Any]] = []
        self.pipelines: list[str] = []
        self.states: list[str | int] = ["PENDING", "run-succeeded"]
        """What is said of the run, one after the other: the name of a recorded answer, a code of
        an error, or a state without any details."""
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(JsonHandler, BaseHTTPRequestHandler):
    server: Stub

    def body(self) -> Any:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def let_in(self) -> bool:
        if self.headers["Authorization"] == f"Bearer {TOKEN}" or self.headers["Cookie"] == COOKIE:
            return True
        self.answer({"error": "Unauthenticated", "message": "no valid token", "code": 16}, 401)
        return False

    def do_GET(self) -> None:
        if not self.let_in():
            return
        path = urlparse(self.path)
        if path.path == "/apis/v2beta1/healthz":
            self.answer({"multi_user": True})
        elif path.path == "/page/apis/v2beta1/healthz":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html>")
        elif path.path == "/apis/v2beta1/experiments":
            assert parse_qs(path.query)["namespace"] == ["lab"]
            self.answer({"experiments": self.server.experiments})
        elif path.path == f"/apis/v2beta1/runs/{RUN}":
            state = self.server.states[min(self.server.asked, len(self.server.states) - 1)]
            self.server.asked += 1
            self.run(state)
        elif path.path == "/apis/v2beta1/pipelines":
            asked = json.loads(parse_qs(path.query)["filter"][0])["predicates"][0]["stringValue"]
            listed = [
                {"pipeline_id": name, "display_name": name}
                for name in self.server.pipelines
                if name == asked
            ]
            self.answer({"pipelines": listed})
        else:
            self.answer({"message": f"no such path: {path.path}"}, 404)

    def run(self, state: str | int) -> None:
        if isinstance(state, int):
            self.answer({"code": 13, "message": "Failed to get a run: Error 1021"}, state)
        elif state.startswith("run-"):
            body, code = recorded(state)
            self.answer(body, code)
        else:
            self.answer({"run_id": RUN, "state": state, "run_details": {}})

    def do_POST(self) -> None:
        if not self.let_in():
            return
        path = urlparse(self.path)
        if path.path.startswith("/apis/v2beta1/pipelines/upload"):
            name = re.search(rb'filename="[^"]*"', content := self.body())
            assert name
            assert b"pipelineInfo" in content
            query = parse_qs(path.query)
            if path.path.endswith("version") and (path.path, query) in self.server.uploads:
                body, code = recorded("upload-same-version")
                self.answer(body, code)
                return
            self.server.uploads.append((path.path, query))
            if path.path.endswith("/upload"):
                self.server.pipelines.append(query["name"][0])
            self.answer({"pipeline_id": "neurofoundry", "pipeline_version_id": "v"})
            return
        sent = json.loads(self.body())
        if path.path == "/apis/v2beta1/experiments":
            assert sent["namespace"] == "lab"
            self.server.experiments.append({"experiment_id": "e", **sent})
            self.answer(self.server.experiments[-1])
        elif path.path in ("/apis/v2beta1/runs", "/apis/v2beta1/recurringruns"):
            problem = check(sent)
            if problem:
                body, code = recorded(problem)
                self.answer(body, code)
            elif path.path.endswith("/runs"):
                self.server.runs.append(sent)
                self.answer({"run_id": RUN, "state": "PENDING", **sent})
            else:
                self.server.recurring.append(sent)
                self.answer({"recurring_run_id": "r", **sent})
        else:
            self.answer({"message": f"no such path: {path.path}"}, 404)


def check(sent: dict[str, Any]) -> str:
    """Return the recorded answer to what a cluster would find wrong with a run, or nothing."""
    spec = sent.get("pipeline_spec") or {}
    spec = spec.get("pipeline_spec", spec)
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError:
        return "post-bad-spec"
    declared = spec["root"]["inputDefinitions"]["parameters"]
    given = sent["runtime_config"].get("parameters", {})
    if set(given) - set(declared):
        return "post-unknown-parameter"
    needed = {name for name, kind in declared.items() if "defaultValue" not in kind}
    if needed - set(given):
        return "post-missing-parameter"
    assert sent.get("experiment_id")
    assert sent.get("display_name")
    cron = sent.get("trigger", {}).get("cron_schedule", {}).get("cron", "0")
    return "recurring-bad-cron" if re.search("[a-z]", cron) else ""


@contextmanager
def serve() -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
