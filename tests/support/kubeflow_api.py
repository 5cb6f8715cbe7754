"""A strict stand-in for the API of Kubeflow Pipelines: it refuses what a cluster would refuse."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

TOKEN = "a-valid-token"
COOKIE = "authservice_session=a-valid-session"
RUN = "11111111-2222-3333-4444-555555555555"


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
        self.states = ["PENDING", "RUNNING", "SUCCEEDED"]
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

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
            if state == "away":
                self.answer({"message": "no healthy upstream"}, 503)
                return
            task = {"task_id": "1", "display_name": "preprocess", "state": state}
            details = {"task_details": [task]}
            self.answer({"run_id": RUN, "state": state, "run_details": details})
        elif path.path == "/apis/v2beta1/pipelines":
            listed = [{"pipeline_id": name, "display_name": name} for name in self.server.pipelines]
            self.answer({"pipelines": listed})
        else:
            self.answer({"message": f"no such path: {path.path}"}, 404)

    def do_POST(self) -> None:
        if not self.let_in():
            return
        path = urlparse(self.path)
        if path.path.startswith("/apis/v2beta1/pipelines/upload"):
            name = re.search(rb'filename="[^"]*"', content := self.body())
            assert name
            assert b"pipelineInfo" in content
            query = parse_qs(path.query)
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
                self.answer({"message": problem, "code": 3}, 400)
            elif path.path.endswith("/runs"):
                self.server.runs.append(sent)
                self.answer({"run_id": RUN, "state": "PENDING", **sent})
            else:
                self.server.recurring.append(sent)
                self.answer({"recurring_run_id": "r", **sent})
        else:
            self.answer({"message": f"no such path: {path.path}"}, 404)


def check(sent: dict[str, Any]) -> str:
    """What a cluster would find wrong with a run."""
    spec = sent.get("pipeline_spec") or {}
    spec = spec.get("pipeline_spec", spec)
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as error:
        return f"pipeline_spec: {error}"
    declared = spec["root"]["inputDefinitions"]["parameters"]
    given = sent["runtime_config"].get("parameters", {})
    if unknown := set(given) - set(declared):
        return f"unknown parameters {sorted(unknown)}"
    needed = {name for name, kind in declared.items() if "defaultValue" not in kind}
    if missing := needed - set(given):
        return f"missing parameters {sorted(missing)}"
    if not sent.get("experiment_id") or not sent.get("display_name"):
        return "no experiment or no name"
    return ""


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
