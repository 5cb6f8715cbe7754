"""A W&B server on this machine that answers what the client asks of it, and nothing else."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.json_handler import JsonHandler

METRIC = re.compile(r"[_a-zA-Z]\w*(/[_a-zA-Z]\w*)*", re.ASCII)
"""What the names of metrics must be for W&B to sort and filter by them."""

ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


def refusal(name: str, given: dict[str, Any]) -> str:
    """Why a server would not take a request, though it knows what is asked; '' if it would."""
    if name == "UpsertBucket":
        if not given.get("id") and not ID.fullmatch(given.get("name") or ""):
            return "a run needs an id"
        if given.get("jobType") and not given.get("groupName"):
            return "a stage needs a group"
        config = json.loads(given.get("config") or "{}")
        return next(
            (f"config {key} has no value" for key, value in config.items() if "value" not in value),
            "",
        )
    if name == "CreateArtifact":
        asked = given["input"]
        aliases = [each["alias"] for each in asked.get("aliases") or []]
        if not ID.fullmatch(asked["artifactCollectionName"]) or not asked["digest"]:
            return "an artifact needs a name and a digest"
        if bad := [each for each in aliases if re.search(r"[/:]", each)]:
            return f"aliases {bad}"
        if not isinstance(json.loads(asked.get("metadata") or "{}"), dict):
            return "metadata are no object"
    return ""


@dataclass
class Received:
    url: str = ""
    operations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Name and variables of GraphQL requests."""
    bodies: list[bytes] = field(default_factory=list)
    """Everything that was sent, in whatever form."""
    history: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    sweep: str = ""
    """The sweep that was registered, as YAML."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """What agents of the sweep are told to run: ``run_id`` and ``args``."""
    lost: str = ""
    """``refused``: nobody listens any more. ``silent``: nobody answers."""
    _close: Callable[[], None] | None = None

    def lose(self, how: str) -> None:
        """The network is lost, for good."""
        self.lost = how
        if how == "refused" and self._close:
            self._close()

    def answer(self, name: str, given: dict[str, Any]) -> Any:
        """The data of a GraphQL answer; None for what this server does not know."""
        entity = {"id": "e", "name": "me"}
        manifest = {"id": "M", "file": self._file("manifest")}
        if name == "RunResumeStatus":
            steps = [json.dumps(row) for row in self.history]
            bucket = {
                "id": "b", "name": given["name"], "summaryMetrics": "{}", "displayName": "d",
                "logLineCount": 0, "historyLineCount": len(steps), "eventsLineCount": 0,
                "historyTail": json.dumps(steps[-1:]), "eventsTail": "[]", "config": "{}",
                "tags": [], "notes": None, "wandbConfig": json.dumps({"t": 1}),
            }  # fmt: skip
            found = {"id": "p", "name": "neurofoundry", "entity": entity}
            return {"model": found | {"bucket": bucket if steps else None}}
        if name == "UpsertBucket":
            project = {"id": "p", "name": "neurofoundry", "entity": entity}
            bucket = {
                "id": "b", "name": given["name"], "displayName": "d", "description": "",
                "config": "{}", "sweepName": None, "project": project, "historyLineCount": 0,
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "CreateRunFiles":
            files = [{"name": each, **self._file(each)} for each in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            found = {"id": "A", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": found}}
        if name in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            return {name[0].lower() + name[1:]: {"artifactManifest": manifest}}
        if name == "CreateArtifactFiles":
            edges = [
                {
                    "node": {
                        "storagePath": "x", "uploadMultipartUrls": None, "artifact": {"id": "A"},
                        **self._file("artifact/" + each["name"]),
                    }
                }
                for each in given["input"]["artifactFiles"]
            ]  # fmt: skip
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if name == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": "A", "digest": "d"}}}
        if name == "Viewer":
            person = {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": person | {"teams": {"edges": []}}}
        if name == "UpsertView2":
            return {"upsertView": {"view": {"id": "w", "name": "nw-w-v"}, "inserted": True}}
        if name == "ArtifactByID":
            return {"artifact": self._committed()}
        if name == "FetchOrgInfoFromEntity":
            org = {"name": "lab", "orgEntity": {"name": "lab-org"}}
            return {"entity": {"__typename": "Entity", "organization": org, "user": None}}
        if name == "LinkArtifact":
            made = self._committed()
            asked = given["input"]
            collection = made["artifactSequence"] | {
                "__typename": "ArtifactPortfolio", "name": asked["artifactPortfolioName"],
            }  # fmt: skip
            member = {
                "__typename": "ArtifactCollectionMembership", "id": "m", "versionIndex": 0,
                "createdAt": "2026-01-01T00:00:00", "aliases": [], "artifact": made,
                "artifactCollection": collection,
            }  # fmt: skip
            return {"result": {"versionIndex": 0, "artifactMembership": member}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "UpsertSweep":
            self.sweep = given["config"]
            sweep = {"name": "s1", "project": {"name": "neurofoundry", "entity": entity}}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if name == "SweepWithRuns":
            found = {"id": "s", "name": "s1", "config": self.sweep, "runs": {"edges": []}}
            return {"project": {"sweep": found}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a"}}}
        if name == "Heartbeat":
            commands = [{"program": "", "type": "run", **self.trials.pop(0)}] if self.trials else []
            answer = {"agent": {"id": "a"}, "commands": json.dumps(commands)}
            return {"agentHeartbeat": answer}
        if name == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": "A"}}}
        return None

    def _committed(self) -> dict[str, Any]:
        """The artifact that was last made, as the server keeps it."""
        made = next(given for name, given in self.operations[::-1] if name == "CreateArtifact")
        collection, kind = (
            made["input"]["artifactCollectionName"],
            made["input"]["artifactTypeName"],
        )
        entity = {"name": "me"}
        project = {"id": "p", "internalId": "p", "name": "neurofoundry", "entity": entity}
        sequence = {"__typename": "ArtifactSequence", "name": collection, "project": project}
        return {
            "__typename": "Artifact", "id": "A", "artifactSequence": sequence, "versionIndex": 0,
            "artifactType": {"name": kind}, "description": None, "metadata": "{}",
            "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None,
            "state": "COMMITTED", "size": 1, "digest": "d", "commitHash": "c", "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00", "updatedAt": None, "aliases": [],
        }  # fmt: skip

    def _file(self, name: str) -> dict[str, Any]:
        return {"id": "F", "uploadUrl": f"{self.url}/upload/{name}", "uploadHeaders": []}


@contextmanager
def serve(*, broken: bool = False) -> Iterator[Received]:
    """A server; a ``broken`` one answers everything with 500."""
    received = Received()
    ended = threading.Event()

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if received.lost:
                self.close_connection = True
                ended.wait(600 if received.lost == "silent" else 0)
                return
            received.bodies.append(body)
            status, answer = (500, {}) if broken else self.handle_body(body)
            self.answer(answer, status)

        do_GET = do_PUT = do_POST  # noqa: N815

        def handle_body(self, body: bytes) -> tuple[int, Any]:
            if self.path == "/graphql":
                asked = json.loads(body)
                name = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
                given = asked.get("variables") or {}
                data = received.answer(name, given)
                received.operations.append((name, given))
                if problem := refusal(name, given):
                    received.unknown.append(f"{name}: {problem}")
                    return 400, {"error": problem}
                if data is not None:
                    return 200, {"data": data}
            elif self.path.startswith("/files/") and self.path.endswith("/file_stream"):
                files = json.loads(body).get("files") or {}
                rows = files.get("wandb-history.jsonl", {}).get("content", [])
                received.history.extend(json.loads(row) for row in rows)
                latest = files.get("wandb-summary.json", {}).get("content", ["{}"])[-1]
                names = {
                    name for row in [*map(json.loads, rows), json.loads(latest)] for name in row
                }
                received.unknown += [
                    f"metric {name}" for name in names if not METRIC.fullmatch(name)
                ]
                return 200, {}
            elif self.path.startswith("/upload/") and self.command == "PUT":
                received.uploads[self.path.removeprefix("/upload/")] = body
                return 200, {}
            received.unknown.append(f"{self.command} {self.path} {body[:200]!r}")
            return 400, {"error": "unknown"}

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is no fault of the server."""

    with Server(("127.0.0.1", 0), Handler) as server:
        received.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def close() -> None:
            server.shutdown()
            server.server_close()

        received._close = close
        yield received
        ended.set()
        close()
