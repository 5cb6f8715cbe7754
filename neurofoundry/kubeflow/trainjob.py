"""Several machines that train one model: a TrainJob of Kubeflow Trainer, launched and followed.

A step of the pipeline asks the API of Kubernetes for the TrainJob (trainer.kubeflow.org/v1alpha1,
Trainer 2.2 or later), prints what its first machine prints, and ends as it ends. Every machine
starts torchrun (`python -m neurofoundry.pretrain.launch_ranks -m neurofoundry pretrain …`), which
the runtime `torch-distributed` of Trainer tells who is who by PET_* variables; then it is ranks.py.

Four paths of the API are all that is needed, so it is spoken to as it is: the image holds no client
library, and the kubeflow SDK (0.5) can neither name an owner nor hand over a secret
(docs/kubeflow.md).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from neurofoundry.errors import NeurofoundryError, RefusedError, UnreachableError, UsageError
from neurofoundry.params import Section

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RUNTIME = {
    "apiGroup": "trainer.kubeflow.org",
    "kind": "ClusterTrainingRuntime",
    "name": "torch-distributed",
}
POLL_S = 5.0
"""Seconds between two looks at the TrainJob, and of silence after which it is looked at."""
PATIENCE_S = 300.0
"""Seconds in which an API server that does not answer is asked again."""
LAST_LINES = 20
"""Of the log of a machine that failed."""
SPEC = "neurofoundry/spec"
"""Annotation: the hash of what was asked for."""


class Accelerator(Section):
    """Devices of one kind."""

    type: str
    count: int = 0


class Pool(Section):
    """The machines, as pipelines/node_pools.yaml describes those of one role."""

    cpu: str
    memory: str
    hours: float = Field(gt=0)
    """After which the TrainJob is stopped."""
    shm: str | None = None
    scratch: str
    accelerator: Accelerator | None = None
    affinity: tuple[dict[str, Any], ...] = ()


class Machines(Section):
    """What the pods of a TrainJob look like."""

    pool: Pool
    nodes: int = Field(ge=2)
    processes: int = Field(ge=0)
    """Of each node: its GPUs, or 0 for one process on the CPU."""
    image: str
    claim: str
    """The persistent volume claim of the store."""
    mount: str
    """Where it is mounted."""
    selector: dict[str, str]
    tolerations: tuple[dict[str, Any], ...]
    secret: str
    """With the key ``api-key`` of W&B; it need not exist."""


class TrainJobError(NeurofoundryError):
    """The TrainJob failed; the exit code is that of the machine that failed first."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def train_job(
    machines: Machines,
    *,
    method: str,
    params: str,
    volumes: Path,
    store: Path,
    run: str,
    owner: Mapping[str, str],
) -> dict[str, Any]:
    """The TrainJob that runs `neurofoundry pretrain` with these arguments on all machines.

    Its name follows from ``run`` and from them, so that a step that is retried finds the one that
    it made. ``owner`` takes it along when it is deleted.
    """
    arguments = ["pretrain", "--method", method, "--params", params, "--volumes", str(volumes)]
    # torchrun has started the processes; the manifest is of no use to anyone.
    arguments += ["--processes", "1", "--store", str(store), "--out", "/tmp/encoder"]
    pool = machines.pool
    resources = {"cpu": pool.cpu, "memory": pool.memory}
    limits = {"memory": pool.memory}
    if pool.accelerator and machines.processes:
        limits[pool.accelerator.type] = str(machines.processes)
    held: list[dict[str, Any]] = [
        {"name": "store", "persistentVolumeClaim": {"claimName": machines.claim}},
        {"name": "scratch", "emptyDir": {"sizeLimit": pool.scratch}},
    ]
    mounts = [
        {"name": "store", "mountPath": machines.mount},
        {"name": "scratch", "mountPath": "/tmp"},
    ]
    if pool.shm:
        held.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    pod: dict[str, Any] = {
        "volumes": held,
        "containers": [{"name": "node", "volumeMounts": mounts}],
        "nodeSelector": machines.selector,
        "tolerations": list(machines.tolerations),
    }
    if pool.affinity:
        terms = {"nodeSelectorTerms": [{"matchExpressions": list(pool.affinity)}]}
        pod["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        }
    key = {"name": machines.secret, "key": "api-key", "optional": True}
    spec = {
        "runtimeRef": RUNTIME,
        "activeDeadlineSeconds": int(pool.hours * 3600),
        "trainer": {
            "image": machines.image,
            "command": [
                "python3",
                "-m",
                "neurofoundry.pretrain.launch_ranks",
                "-m",
                "neurofoundry",
            ],
            "args": arguments,
            "numNodes": machines.nodes,
            "numProcPerNode": max(1, machines.processes),
            "resourcesPerNode": {"requests": resources, "limits": limits},
            "env": [
                {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": key}},
                {"name": "NEUROFOUNDRY_RUN", "value": run},
            ],
        },
        "runtimePatches": [
            {
                "manager": "neurofoundry/pretrain",
                "trainingRuntimeSpec": {
                    "template": {
                        "spec": {
                            "replicatedJobs": [
                                {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
                            ]
                        }
                    }
                },
            }
        ],
    }
    name = f"{re.sub('[^a-z0-9]', '', method)}-{_hash([run, arguments])}"
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/part-of": "neurofoundry"},
            "annotations": {SPEC: _hash(spec)},
            "ownerReferences": [dict(owner)],
        },
        "spec": spec,
    }


class Api:
    """The API of Kubernetes, for one namespace. Raises RefusedError and UnreachableError."""

    def __init__(self, url: str, namespace: str, account: Path) -> None:
        self.url = url
        self.namespace = namespace
        self._token = account / "token"
        authority = account / "ca.crt"
        self._tls = ssl.create_default_context(cafile=authority) if authority.exists() else None

    @classmethod
    def of_this_pod(cls) -> Api:
        """As Kubernetes tells every pod. Raises UsageError outside a cluster."""
        try:
            host, port = (os.environ[f"KUBERNETES_SERVICE_{name}"] for name in ("HOST", "PORT"))
            namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
        except (KeyError, OSError) as error:
            raise UsageError(
                f"Several nodes need a cluster, and this is no pod of one ({error}). On one "
                "machine, run `neurofoundry pretrain`; in the pipeline, leave nodes at 1."
            ) from error
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", namespace, SERVICE_ACCOUNT)

    def train_jobs(self, name: str = "") -> str:
        """Path of the TrainJobs, or of one."""
        jobs = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{self.namespace}/trainjobs"
        return f"{jobs}/{name}" if name else jobs

    def pods(self, name: str = "") -> str:
        """Path of the pods, or of what is one's."""
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        return f"{pods}/{name}" if name else pods

    def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """A request, repeated while the server does not answer; the answer's JSON."""
        started = time.monotonic()
        while True:
            try:
                with self._open(method, path, body, query, timeout=30) as answer:
                    return json.loads(answer.read())
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() - started > PATIENCE_S:
                    raise UnreachableError(
                        f"{self.url}: no answer ({error}). The TrainJob, if there is one, goes on, "
                        "and the retry of this step follows it."
                    ) from error
                time.sleep(POLL_S)

    def lines(self, path: str, **query: str) -> Iterator[str]:
        """The lines of a log, until it ends or is silent."""
        with (
            suppress(OSError, http.client.HTTPException),
            self._open("GET", path, None, query, timeout=POLL_S) as answer,
        ):
            for line in answer:
                yield line.decode(errors="replace").rstrip("\n")

    def _open(
        self, method: str, path: str, body: Any, query: Mapping[str, str], *, timeout: float
    ) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}{'?' if query else ''}{urllib.parse.urlencode(query)}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            # The token is replaced now and then, in the same file.
            headers={"Authorization": f"Bearer {self._token.read_text().strip()}"},
        )
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            return urllib.request.urlopen(request, timeout=timeout, context=self._tls)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            with suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["message"]
            if error.code >= 500 or error.code == 429:
                raise ConnectionError(f"{error.code}: {text}") from error
            raise RefusedError(
                f"{method} {path} was refused ({error.code}): {text.strip()}. "
                + _advice(error.code),
                error.code,
            ) from error


def owner_of_this_run(api: Api) -> dict[str, str]:
    """What is deleted with the run: the workflow that this pod belongs to, or else the pod."""
    pod = api.ask("GET", api.pods(os.environ.get("POD_NAME") or os.environ["HOSTNAME"]))
    names = ("apiVersion", "kind", "name", "uid")
    for owner in pod["metadata"].get("ownerReferences", ()):
        if owner["kind"] == "Workflow":
            return {name: owner[name] for name in names}
    found = pod["metadata"]
    return {"apiVersion": "v1", "kind": "Pod", "name": found["name"], "uid": found["uid"]}


def train(api: Api, job: Mapping[str, Any]) -> None:
    """Create the TrainJob, or take over the same one, and follow it to its end.

    It is deleted at its end, when it is late and when this process is told to stop; it is left
    alone when the API does not answer, as the next try finds it. Raises TrainJobError.
    """
    name = job["metadata"]["name"]
    seconds = job["spec"]["activeDeadlineSeconds"]
    with _told_to_stop():
        _create(api, job)
        try:
            _follow(api, name, until=time.monotonic() + seconds + PATIENCE_S)
        except UnreachableError:
            raise
        except BaseException:
            _delete(api, name)
            raise
        _delete(api, name)


def _create(api: Api, job: Mapping[str, Any]) -> None:
    name, wanted = job["metadata"]["name"], job["metadata"]["annotations"][SPEC]
    while True:
        try:
            api.ask("POST", api.train_jobs(), job)
            print(f"TrainJob {name}: {job['spec']['trainer']['numNodes']} nodes", flush=True)
            return
        except RefusedError as error:
            if error.status != 409:
                raise
        try:
            found = api.ask("GET", api.train_jobs(name))["metadata"]
        except RefusedError as error:
            if error.status != 404:
                raise
            continue
        if found.get("deletionTimestamp"):
            time.sleep(POLL_S)  # of an earlier try; its name is free in a moment
        elif found.get("annotations", {}).get(SPEC) == wanted:
            print(f"TrainJob {name}: taken over from an earlier try of this step", flush=True)
            return
        else:
            raise UsageError(
                f"There is a TrainJob {name} of another content in namespace {api.namespace}. "
                f"Wait for its end, or delete it: kubectl delete trainjob {name}."
            )


def _follow(api: Api, name: str, *, until: float) -> None:
    """Print what the first machine prints until the TrainJob ends. Raises TrainJobError."""
    since: dict[str, str] = {}
    while time.monotonic() < until:
        state = _state(api.ask("GET", api.train_jobs(name)))
        # Asked after the state: what the job printed before its end is then there to be read.
        first = _pods(api, name, node="0")
        for pod in first:
            if pod["status"].get("phase") in ("Running", "Succeeded", "Failed"):
                _print_log(api, pod["metadata"]["name"], since)
        if state.get("type") == "Complete":
            print(f"TrainJob {name}: complete", flush=True)
            return
        if state:
            raise _failure(api, name, state)
        time.sleep(POLL_S)
    raise TrainJobError(
        f"TrainJob {name} has not ended in time. Give the pool more hours, or see why its pods "
        "wait: are there so many GPUs?"
    )


def _state(job: Mapping[str, Any]) -> dict[str, str]:
    """The condition that says how the TrainJob ended, or nothing."""
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return {}


def _pods(api: Api, name: str, node: str = "") -> list[dict[str, Any]]:
    """The pods of a TrainJob, in the order in which they were created."""
    labels = [f"jobset.sigs.k8s.io/jobset-name={name}"]
    labels += [f"batch.kubernetes.io/job-completion-index={node}"] if node else []
    found = api.ask("GET", api.pods(), labelSelector=",".join(labels))["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def _print_log(api: Api, pod: str, since: dict[str, str]) -> None:
    """Print the lines that are new, as long as they come; ``since`` has the time of the last."""
    query = {"container": "node", "follow": "true", "timestamps": "true"}
    last = since.get(pod, "")
    if last:
        query["sinceTime"] = last  # in whole seconds: some lines come again
    try:
        for line in api.lines(f"{api.pods(pod)}/log", **query):
            moment, _, text = line.partition(" ")
            if moment > last:
                print(text, flush=True)
                since[pod] = moment
    except RefusedError as error:
        if error.status not in (400, 404):  # a pod that is starting or gone has no log
            raise


def _failure(api: Api, name: str, state: Mapping[str, str]) -> TrainJobError:
    """What the machine that is the cause, or else failed first, said last."""
    ends = [
        (str(ended.get("finishedAt")), int(ended["exitCode"]), pod["metadata"])
        for pod in _pods(api, name)
        for container in pod["status"].get("containerStatuses", ())
        if (ended := container.get("state", {}).get("terminated")) and ended["exitCode"]
    ]
    reason = f"{state.get('reason', '')}: {state.get('message', '')}".strip(": ")
    if not ends:
        return TrainJobError(f"TrainJob {name} failed ({reason}).")
    # A mistake of a person is never the consequence of another machine's end.
    _, code, pod = min(ends, key=lambda end: (end[1] not in (2, 3), end[0]))
    query = {"container": "node", "tailLines": str(LAST_LINES)}
    lines: list[str] = []
    with suppress(RefusedError):
        lines = list(api.lines(f"{api.pods(pod['name'])}/log", **query))
    node = pod.get("labels", {}).get("batch.kubernetes.io/job-completion-index", "?")
    return TrainJobError(
        f"TrainJob {name} failed ({reason}). Node {node} (pod {pod['name']}) ended with exit code "
        f"{code}, and said last:\n  " + "\n  ".join(lines),
        code,
    )


def _delete(api: Api, name: str) -> None:
    with suppress(RefusedError, UnreachableError):
        api.ask("DELETE", api.train_jobs(name), propagationPolicy="Foreground")


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """SIGTERM, as from a run that is terminated, ends the block as an exit does."""

    def stop(*_: Any) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _advice(status: int) -> str:
    return {
        401: "The token of the service account is not valid.",
        403: "Give the service account of the run the rights of docs/kubeflow-rbac.yaml.",
        404: "Is Kubeflow Trainer 2.2 or later installed?",
    }.get(status, "Does the version of Kubeflow Trainer fit?")


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
