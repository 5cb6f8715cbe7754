"""A strict stand-in for the API of Kubernetes with Kubeflow Trainer: it refuses what they would.

It knows one account, which has the rights of docs/kubeflow-rbac.yaml and no others.

The fields are those of the CRD in Trainer 2.3 (trainer.kubeflow.org/v1alpha1), as far as they are
used here.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

from tests.support import rights
from tests.support.json_handler import JsonHandler

NAMESPACE = "lab"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
LAUNCHER = {
    "metadata": {
        "name": "launcher",
        "uid": "pod-uid",
        "ownerReferences": [
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Workflow",
                "name": "neurofoundry-abc",
                "uid": "workflow-uid",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
}

# A name that ends in ! must be there; * stands for any name; [x] is a list of x.
TEXTS = {"*": str}
QUANTITIES = {"limits": TEXTS, "requests": TEXTS}
SECRET = {"secretKeyRef": {"name": str, "key!": str, "optional": bool}}
ENV = {"name!": str, "value": str, "valueFrom": SECRET}
EXPRESSION = {"key!": str, "operator!": str, "values": [str]}
TERMS = {"nodeSelectorTerms!": [{"matchExpressions": [EXPRESSION]}]}
VOLUME = {
    "name!": str,
    "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
POD = {
    "volumes": [VOLUME],
    # Of the container `node`, the environment is the trainer's.
    "containers": [
        {
            "name!": str,
            "volumeMounts": [{"name!": str, "mountPath!": str}],
            "securityContext": {"allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
        }
    ],
    "imagePullSecrets": [{"name!": str}],
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "seccompProfile": {"type!": str},
    },
    "nodeSelector": TEXTS,
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": TERMS}},
}
TEMPLATE = {"metadata": {"labels": TEXTS, "annotations": TEXTS}, "spec": POD}
PATCHED_JOB = {"name!": str, "template": {"spec": {"template": TEMPLATE}}}
OWNER = {"apiVersion!": str, "kind!": str, "name!": str, "uid!": str, "controller": bool}
TRAIN_JOB = {
    "apiVersion!": str,
    "kind!": str,
    "metadata!": {
        "name!": str,
        "labels": TEXTS,
        "annotations": TEXTS,
        "ownerReferences": [OWNER],
    },
    "spec!": {
        "runtimeRef!": {"apiGroup": str, "kind": str, "name!": str},
        "activeDeadlineSeconds": int,
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode": QUANTITIES,
            "env": [ENV],
        },
        "runtimePatches": [
            {
                "manager!": str,
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [PATCHED_JOB]}}},
            }
        ],
    },
}


def problem(value: Any, schema: Any, path: str = "") -> str:
    """Return what is wrong with ``value``, or nothing."""
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{path}: expected a list"
        problems = (problem(each, schema[0], f"{path}[{i}]") for i, each in enumerate(value))
        return next(filter(None, problems), "")
    if not isinstance(schema, dict):
        return "" if type(value) is schema else f"{path}: expected {schema.__name__}"
    if not isinstance(value, dict):
        return f"{path}: expected an object"
    names = {name.rstrip("!"): inner for name, inner in schema.items()}
    if missing := {name[:-1] for name in schema if name.endswith("!")} - set(value):
        return f"{path}: required {sorted(missing)}"
    for name, inner in value.items():
        if name not in names and "*" not in names:
            return f'{path}: unknown field "{name}"'
        if wrong := problem(inner, names.get(name, names.get("*")), f"{path}.{name}"):
            return wrong
    return ""


def refusal(job: dict[str, Any]) -> str:
    """Return what the CRD or the webhooks of Trainer would find wrong with a TrainJob."""
    if wrong := problem(job, TRAIN_JOB):
        return wrong
    spec, trainer = job["spec"], job["spec"]["trainer"]
    if (job["apiVersion"], job["kind"]) != ("trainer.kubeflow.org/v1alpha1", "TrainJob"):
        return "no such kind"
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"]):
        return "metadata.name: not a DNS-1035 label"
    if spec["runtimeRef"]["name"] != "torch-distributed":
        return "no such runtime"
    if min(spec["activeDeadlineSeconds"], trainer["numNodes"], trainer["numProcPerNode"]) < 1:
        return "must be greater than zero"
    if any(env["name"].startswith("PET_") for env in trainer["env"]):
        return "must not have reserved envs"
    return ""


def pod(name: str, node: int, **status: Any) -> dict[str, Any]:
    """Make a pod of a TrainJob. ``exit_code`` and ``finished`` are those of its container."""
    code = status.pop("exit_code", None)
    ended = {"exitCode": code, "finishedAt": status.pop("finished", "2026-01-01T00:00:00Z")}
    state = {"running": {}} if code is None else {"terminated": ended}
    labels = {
        "jobset.sigs.k8s.io/jobset-name": name,
        "batch.kubernetes.io/job-completion-index": str(node),
    }
    metadata = {
        "name": f"{name}-node-0-{node}-x",
        "labels": labels,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    phase = "Running" if code is None else "Failed" if code else "Succeeded"
    containers = [{"name": "node", "state": state}]
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": containers}}


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, str]:
    """Make a condition as in the status of a TrainJob."""
    return {"type": kind, "status": "True", "reason": reason, "message": message}


@dataclass
class Cluster:
    """What there is, what was asked, and what happens to a TrainJob."""

    token: str = "a-valid-token"
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Lines with their moment, by name of the pod."""
    silent: bool = False
    """Whether a log that is followed stays open after its last line."""
    ends: Callable[[dict[str, Any]], dict[str, str] | None] = lambda job: condition("Complete")
    """The condition of a TrainJob when its state is asked for."""
    created: Callable[[dict[str, Any]], None] = lambda job: None
    deleted: Callable[[dict[str, Any]], None] = lambda job: None
    fails: list[int] = field(default_factory=list)
    """Codes of the next answers."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


class Handler(JsonHandler, BaseHTTPRequestHandler):
    cluster: Cluster

    def refuse(self, code: int, message: str) -> None:
        self.answer({"kind": "Status", "status": "Failure", "message": message, "code": code}, code)

    def let_in(self) -> bool:
        path = urlparse(self.path).path
        self.cluster.asked.append((self.command, path))
        if self.headers["Authorization"] != f"Bearer {self.cluster.token}":
            self.refuse(401, "Unauthorized")
        elif not rights.allows(call := rights.call_of(self.command, path)):
            self.refuse(403, f"forbidden: cannot {call.verb} resource {call.resource!r}")
        elif self.cluster.fails:
            self.refuse(self.cluster.fails.pop(0), "as the test wants it")
        else:
            return True
        return False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.let_in():
            return
        job = json.loads(body)
        if self.path != JOBS:
            self.refuse(404, "the server could not find the requested resource")
        elif self.headers["Content-Type"] != "application/json":
            self.refuse(415, "unsupported media type")
        elif wrong := refusal(job):
            self.refuse(422, wrong)
        elif job["metadata"]["name"] in self.cluster.jobs:
            self.refuse(409, "already exists")
        else:
            self.cluster.jobs[job["metadata"]["name"]] = job
            self.cluster.created(job)
            self.answer(job, 201)

    def do_DELETE(self) -> None:
        if not self.let_in():
            return
        path = urlparse(self.path)
        assert parse_qs(path.query) == {"propagationPolicy": ["Foreground"]}
        if job := self.cluster.jobs.pop(path.path.removeprefix(f"{JOBS}/"), None):
            self.cluster.deleted(job)
            self.answer({"status": "Success"})
        else:
            self.refuse(404, "not found")

    def do_GET(self) -> None:
        if not self.let_in():
            return
        path = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(path.query).items()}
        if path.path.startswith(f"{JOBS}/"):
            job = self.cluster.jobs.get(path.path.removeprefix(f"{JOBS}/"))
            if job is None:
                self.refuse(404, "not found")
            else:
                end = self.cluster.ends(job)
                self.answer({**job, "status": {"conditions": [end] if end else []}})
        elif path.path == PODS:
            wanted = dict(each.split("=") for each in query.pop("labelSelector").split(","))
            assert not query
            fitting = [
                each
                for each in self.cluster.pods
                if wanted.items() <= each["metadata"]["labels"].items()
            ]
            self.answer({"items": fitting})
        elif path.path == f"{PODS}/launcher":
            self.answer(LAUNCHER)
        elif match := re.fullmatch(rf"{PODS}/([^/]+)/log", path.path):
            self.log(match[1], query)
        else:
            self.refuse(404, "not found")

    def log(self, name: str, query: dict[str, str]) -> None:
        lines = self.cluster.logs.get(name)
        if lines is None:
            self.refuse(400, "container is waiting to start")
            return
        assert query.pop("container") == "node"
        stamped = query.pop("timestamps", "") == "true"
        follow = query.pop("follow", "") == "true"
        if since := query.pop("sinceTime", ""):
            # A moment is understood to the second: lines come twice.
            lines = [line for line in lines if line[:19] >= since[:19]]
        if tail := query.pop("tailLines", ""):
            lines = lines[-int(tail) :]
        assert not query
        self.send_response(200)
        self.end_headers()
        for line in lines:
            self.wfile.write(f"{line if stamped else line.partition(' ')[2]}\n".encode())
        self.wfile.flush()
        if follow and self.cluster.silent:
            time.sleep(2)


@contextmanager
def serve(cluster: Cluster) -> Iterator[Cluster]:
    """Serve the API of ``cluster`` at its url."""
    handler = type("Bound", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
