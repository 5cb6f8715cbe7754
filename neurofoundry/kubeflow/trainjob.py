"""Several machines that train one model: a TrainJob of Kubeflow Trainer, launched and followed.

A step of the pipeline asks the API of Kubernetes for the TrainJob (trainer.kubeflow.org/v1alpha1,
Trainer 2.2 or later), prints what its first machine prints, and ends as it ends. Every machine
starts torchrun (`python -m neurofoundry.pretrain.launch_ranks -m neurofoundry pretrain …`), which
the runtime `torch-distributed` of Trainer tells who is who by PET_* variables; then it is ranks.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neurofoundry.errors import NeurofoundryError, RefusedError, UnreachableError, UsageError
from neurofoundry.kubeflow.api import Api
from neurofoundry.kubeflow.schemas import Machines, Pool
from neurofoundry.runtime import machine
from neurofoundry.runtime.log import LOGGER

RUNTIME = {
    "apiGroup": "trainer.kubeflow.org",
    "kind": "ClusterTrainingRuntime",
    "name": "torch-distributed",
}
LAUNCH = ("python3", "-m", "neurofoundry.pretrain.launch_ranks", "-m", "neurofoundry")
STARTED = ("Running", "Succeeded", "Failed")
"""Phases of a pod that may have a log."""
SPEAK_EVERY_S = 60.0
"""Seconds of silence after which a line says what the first machine does."""
POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
NODE_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What a namespace with Pod Security `restricted` asks of a pod and of its container."""
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""Annotation: a sidecar outlives its job, and takes the ports of the rendezvous."""
LAST_LINES = 20
"""Of the log of a machine that failed."""
SPEC = "neurofoundry/spec"
"""Annotation: the hash of what was asked for."""


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
    """Describe the TrainJob that runs `neurofoundry pretrain` on all machines.

    Its name follows from ``run`` and the arguments, so that a step that is retried finds the one
    that it made. ``owner`` takes it along when it is deleted.
    """
    arguments = ["pretrain", "--method", method, "--params", params, "--volumes", str(volumes)]
    # torchrun has started the processes; the manifest is of no use to anyone.
    arguments += ["--processes", "1", "--store", str(store), "--out", "/tmp/encoder"]
    spec = {
        "runtimeRef": RUNTIME,
        "activeDeadlineSeconds": int(machines.pool.hours * 3600),
        "trainer": _trainer(machines, arguments, run),
        "runtimePatches": [_patch(machines.pool, _pod(machines))],
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {
            "name": f"{re.sub('[^a-z0-9]', '', method)}-{_hash([run, arguments])}",
            "labels": {"app.kubernetes.io/part-of": "neurofoundry"},
            "annotations": {SPEC: _hash(spec)},
            "ownerReferences": [dict(owner)],
        },
        "spec": spec,
    }


def _trainer(machines: Machines, arguments: list[str], run: str) -> dict[str, Any]:
    """Return what runs on each node, and the resources that it asks for."""
    pool = machines.pool
    limits = {"memory": pool.memory} | ({"cpu": pool.cpu_limit} if pool.cpu_limit else {})
    if pool.accelerator and machines.processes:
        limits[pool.accelerator.type] = str(machines.processes)
    key = {"name": machines.secret, "key": "api-key", "optional": True}
    return {
        "image": machines.image,
        "command": list(LAUNCH),
        "args": arguments,
        "numNodes": machines.nodes,
        "numProcPerNode": max(1, machines.processes),
        "resourcesPerNode": {
            "requests": {"cpu": pool.cpu, "memory": pool.memory},
            "limits": limits,
        },
        "env": [
            {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": key}},
            {"name": "NEUROFOUNDRY_RUN", "value": run},
            {"name": machine.CORES, "value": str(pool.cores)},
            *({"name": name, "value": value} for name, value in pool.env.items()),
        ],
    }


def _pod(machines: Machines) -> dict[str, Any]:
    """Return where the pods may run, and what is mounted in them."""
    pool = machines.pool
    # Name to (what is mounted, where).
    held: dict[str, tuple[dict[str, Any], str]] = {
        "store": ({"persistentVolumeClaim": {"claimName": machines.claim}}, machines.mount),
        "scratch": ({"emptyDir": {"sizeLimit": pool.scratch}}, "/tmp"),
    }
    if pool.shm:
        held["shm"] = ({"emptyDir": {"medium": "Memory", "sizeLimit": pool.shm}}, "/dev/shm")
    mounts = [{"name": name, "mountPath": path} for name, (_, path) in held.items()]
    pod: dict[str, Any] = {
        "volumes": [{"name": name, **volume} for name, (volume, _) in held.items()],
        "containers": [{"name": "node", "volumeMounts": mounts, "securityContext": NODE_SECURITY}],
        "securityContext": POD_SECURITY | _user(pool),
        "nodeSelector": machines.selector,
        "tolerations": list(machines.tolerations),
    }
    if pool.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in pool.pull_secrets]
    if pool.affinity:
        expressions = [each.model_dump(mode="json") for each in pool.affinity]
        terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
        pod["affinity"] = {"nodeAffinity": required}
    return pod


def _user(pool: Pool) -> dict[str, int]:
    named = {"runAsUser": pool.run_as_user, "runAsGroup": pool.run_as_group}
    return {name: number for name, number in named.items() if number is not None}


def _patch(pool: Pool, pod: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that gives the pods of the runtime's nodes what is in ``pod``."""
    about = {"labels": pool.labels, "annotations": pool.annotations | NO_SIDECAR}
    template = {"metadata": {name: values for name, values in about.items() if values}, "spec": pod}
    node = {"name": "node", "template": {"spec": {"template": template}}}
    return {
        "manager": "neurofoundry/pretrain",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
    }


def owner_of_this_run(api: Api) -> dict[str, str]:
    """Find what is deleted with the run: the workflow that this pod belongs to, or else the pod."""
    pod = api.ask("GET", api.pods(os.environ.get("POD_NAME") or os.environ["HOSTNAME"]))
    names = ("apiVersion", "kind", "name", "uid")
    for owner in pod["metadata"].get("ownerReferences", ()):
        if owner["kind"] == "Workflow":
            return {name: owner[name] for name in names}
    this = pod["metadata"]
    return {"apiVersion": "v1", "kind": "Pod", "name": this["name"], "uid": this["uid"]}


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
            _follow(api, name, until=time.monotonic() + seconds + api.patience_s)
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
            LOGGER.info("TrainJob %s: %d nodes", name, job["spec"]["trainer"]["numNodes"])
            return
        except RefusedError as error:
            if error.status != 409:
                raise
        try:
            present = api.ask("GET", api.train_jobs(name))["metadata"]
        except RefusedError as error:
            if error.status != 404:
                raise
            continue
        if present.get("deletionTimestamp"):
            time.sleep(api.poll_s)  # of an earlier try; its name is free in a moment
        elif present.get("annotations", {}).get(SPEC) == wanted:
            LOGGER.info("TrainJob %s: taken over from an earlier try of this step", name)
            return
        else:
            raise UsageError(
                f"There is a TrainJob {name} of another content in namespace {api.namespace}. "
                f"Wait for its end, or delete it: kubectl delete trainjob {name}."
            )


def _follow(api: Api, name: str, *, until: float) -> None:
    """Print what the first machine prints until the TrainJob ends. Raises TrainJobError."""
    since: dict[str, str] = {}
    spoken = time.monotonic()
    while time.monotonic() < until:
        state = _state(api.ask("GET", api.train_jobs(name)))
        # Asked after the state: what the job printed before its end is then there to be read.
        phases = {
            str(pod["metadata"]["name"]): str(pod["status"].get("phase"))
            for pod in _pods(api, name, node="0")
        }
        started = [pod for pod, phase in phases.items() if phase in STARTED]
        if any([_print_log(api, pod, since) for pod in started]):
            spoken = time.monotonic()
        elif time.monotonic() - spoken > SPEAK_EVERY_S:
            LOGGER.info("TrainJob %s: node 0 is %s", name, ", ".join(phases.values()) or "missing")
            spoken = time.monotonic()
        if state.get("type") == "Complete":
            LOGGER.info("TrainJob %s: complete", name)
            return
        if state:
            raise _failure(api, name, state)
        time.sleep(api.poll_s)
    raise TrainJobError(
        f"TrainJob {name} has not ended in time. Give the pool more hours, or see why its pods "
        "wait: are there so many GPUs?"
    )


def _state(job: Mapping[str, Any]) -> dict[str, str]:
    """Return the condition that says how the TrainJob ended, or nothing."""
    for condition in job.get("status", {}).get("conditions", ()):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return {}


def _pods(api: Api, name: str, node: str = "") -> list[dict[str, Any]]:
    """Return the pods of a TrainJob in the order in which they were created."""
    labels = [f"jobset.sigs.k8s.io/jobset-name={name}"]
    labels += [f"batch.kubernetes.io/job-completion-index={node}"] if node else []
    listed = api.ask("GET", api.pods(), labelSelector=",".join(labels))["items"]
    return sorted(listed, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def _print_log(api: Api, pod: str, since: dict[str, str]) -> bool:
    """Print the lines that are new, as long as they come; say whether there were any.

    ``since`` has the time of the last line of each pod.
    """
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
    return since.get(pod, "") != last


def _failure(api: Api, name: str, state: Mapping[str, str]) -> TrainJobError:
    """Return the error with the last words of the machine that is the cause, or failed first."""
    ends = [
        (str(ended.get("finishedAt")), int(ended["exitCode"]), pod["metadata"])
        for pod in _pods(api, name)
        for container in pod["status"].get("containerStatuses", ())
        if (ended := container.get("state", {}).get("terminated")) and ended["exitCode"]
    ]
    reason = f"{state.get('reason', '')}: {state.get('message', '')}".strip(": ")
    if not ends:
        return TrainJobError(f"TrainJob {name} failed ({reason}).")
    # Exit codes 2 and 3 are for a person to fix: never the consequence of another machine's end.
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
    """End the block at SIGTERM, which a terminated run sends, as an exit does."""

    def stop(*_: Any) -> None:
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
