"""Machines and data as `neurofoundry` and `python -m pipelines` both know them."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from neurofoundry.params import Section


class Toleration(Section):
    """A taint of nodes that a pod accepts."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"


class Expression(Section):
    """A requirement of a node affinity."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()


class Accelerator(Section):
    """Devices of one kind."""

    type: str
    """Resource name, such as nvidia.com/gpu."""
    count: int = Field(ge=0)


class Spot(Section):
    """What is added for nodes that may be taken away; a stage then resumes on another."""

    selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class Pool(Section):
    """Machines for the steps of one role."""

    cpu: str
    """Cores to ask for, as Kubernetes writes them; a step uses no more."""
    cpu_limit: str | None = None
    """Cores at most; a namespace with a quota of CPU limits asks for it."""
    memory: str
    hours: float = Field(gt=0)
    """After which a step, or a TrainJob, is stopped; the next try resumes."""
    shm: str | None = None
    """Size of /dev/shm, out of ``memory``: what worker processes share."""
    scratch: str = "10Gi"
    """Size of /tmp, on the disk of the node: all that a step writes beside the store."""
    accelerator: Accelerator | None = None
    selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    affinity: tuple[Expression, ...] = ()
    spot: Spot | None = None

    @property
    def cores(self) -> int:
        """Return ``cpu`` as the number of processes and threads that it is good for."""
        number = float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)
        return max(1, math.ceil(number))

    def on_spot(self) -> Pool:
        """Return the same pool on nodes that may be taken away."""
        if self.spot is None:
            return self
        selector = self.selector | self.spot.selector
        tolerations = self.tolerations + self.spot.tolerations
        return self.model_copy(update={"selector": selector, "tolerations": tolerations})

    def machines(self) -> dict[str, Any]:
        """Return what a step needs to ask for such machines itself, as JSON has it.

        Selector and tolerations are left out: they are given with each run.
        """
        without = {"selector", "tolerations", "spot"}
        return self.model_dump(mode="json", exclude=without, exclude_none=True)


class Profile(Section):
    """The pools of a cluster, by the role of the steps that they are for."""

    light: Pool
    """Checks, tables, promotion."""
    cpu: Pool
    """Ingest, preprocessing, evaluation."""
    gpu: Pool
    """Pretraining and fine-tuning."""


class Machines(Section):
    """The pods of a TrainJob."""

    pool: Pool
    nodes: int = Field(ge=1)
    processes: int = Field(ge=0)
    """On each node: its GPUs, or 0 for one process on the CPU."""
    image: str
    claim: str
    """The persistent volume claim of the store."""
    mount: str
    """Where it is mounted."""
    selector: dict[str, str]
    """Labels of the nodes, as given with the run."""
    tolerations: tuple[dict[str, Any], ...]
    """Taints that are accepted, as given with the run: all that Kubernetes knows of tolerations."""
    secret: str
    """The secret with the key ``api-key`` of W&B; it need not exist."""


class DvcOutput(BaseModel):
    """A file or folder that DVC tracks; keys of other versions of DVC are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    md5: str
    """Hash of the content, which names its version; a folder's ends in ``.dir``."""
    path: str
    nfiles: int = 0
    size: int = 0
    """Bytes."""


class DvcFile(BaseModel):
    """What `dvc add` writes, such as data.dvc."""

    model_config = ConfigDict(frozen=True)

    outs: tuple[DvcOutput]
