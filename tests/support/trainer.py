"""Kubeflow Trainer on this machine: what its runtime `torch-distributed` does with a TrainJob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import docker

from tests.support.kubernetes import Cluster, condition, pod, serve


class Trainer:
    """Runs each node of a TrainJob in a container, on a network without a way out."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        """Of the containers: what a cluster knows of its machines."""
        self.client = docker.from_env()
        self.containers: list[Any] = []

    def start(self, job: dict[str, Any]) -> None:
        name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
        assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
        for node in range(trainer["numNodes"]):
            host = f"{name}-node-0-{node}"
            # As pkg/runtime/framework/plugins/torch/torch.go of kubeflow/trainer sets them.
            environment = {
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": f"{name}-node-0-0",
                "PET_MASTER_PORT": "29500",
            }
            container = self.client.containers.run(
                trainer["image"],
                [*trainer["command"], *trainer["args"]],
                name=host,
                hostname=host,
                detach=True,
                **{**self.options, "environment": environment | self.options["environment"]},
            )
            self.containers.append(container)

    def look(self, cluster: Cluster, job: dict[str, Any]) -> dict[str, str] | None:
        """Bring the pods of the cluster up to date; how the TrainJob has ended, if it has."""
        name, codes = job["metadata"]["name"], []
        cluster.pods.clear()
        for node, container in enumerate(self.containers):
            container.reload()
            state = container.attrs["State"]
            code = None if state["Running"] else state["ExitCode"]
            codes.append(code)
            cluster.pods.append(pod(name, node, exit_code=code, finished=state["FinishedAt"]))
            lines = container.logs(timestamps=True).decode().splitlines()
            cluster.logs[cluster.pods[-1]["metadata"]["name"]] = lines
        if any(codes):
            return condition("Failed", "JobFailed", "a node failed")
        return condition("Complete") if None not in codes else None

    def clear(self, _: Any = None) -> None:
        for container in self.containers:
            container.remove(force=True)
        self.containers.clear()


@contextmanager
def trainer(options: Mapping[str, Any]) -> Iterator[tuple[Cluster, Trainer]]:
    """A cluster of the stub whose TrainJobs really run."""
    found, cluster = Trainer(options), Cluster()
    cluster.created, cluster.deleted = found.start, found.clear
    cluster.ends = lambda job: found.look(cluster, job)
    try:
        with serve(cluster):
            yield cluster, found
    finally:
        found.clear()
        found.client.close()
