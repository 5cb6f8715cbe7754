"""Machines and data as `neurofoundry` and `python -m pipelines` both know them."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from neurofoundry.params import Section

LABEL = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
LABEL_KEY = rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{LABEL}"
DNS_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
UNITS = {"": 1, **{f"{unit}i": 2 ** (10 * n) for n, unit in enumerate("KMGT", 1)}}
UNITS |= {unit: 1000**n for n, unit in enumerate("kMGT", 1)}
"""Of Kubernetes' quantities of bytes."""

OURS = ("NEUROFOUNDRY_", "WANDB_API_KEY", "POD_NAME")
"""Beginnings of the environment variables that the pipeline itself sets."""


def cores_of(text: str) -> float:
    """Return Kubernetes' quantity of CPU as a number of cores. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text)
    number = float(match[1]) / (1000 if match[2] else 1) if match else 0.0
    if not number:
        raise ValueError("expected cores, such as '8' or '500m'")
    return number


def bytes_of(text: str) -> float:
    """Return Kubernetes' quantity of memory or disk space as bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTi]*|k)", text)
    number = float(match[1]) * UNITS.get(match[2], 0) if match else 0.0
    if not number:
        raise ValueError("expected bytes with a unit and no space, such as 64Gi")
    return number


def _memory(text: str) -> str:
    if bytes_of(text) < 2**28:
        raise ValueError("expected at least 256Mi, less than which no step starts with")
    return text


def _cpu(text: str) -> str:
    cores_of(text)
    return text


def _space(text: str) -> str:
    bytes_of(text)
    return text


Cpu = Annotated[str, AfterValidator(_cpu)]
Memory = Annotated[str, AfterValidator(_memory)]
Space = Annotated[str, AfterValidator(_space)]


def matches(pattern: str, what: str) -> AfterValidator:
    """Return a validator for texts that Kubernetes takes for ``what``."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is no {what} of Kubernetes")
        return text

    return AfterValidator(check)


LabelKey = Annotated[str, matches(LABEL_KEY, "name of a label")]
LabelValue = Annotated[str, matches(f"{LABEL}?", "value of a label")]
Labels = dict[LabelKey, LabelValue]
DnsName = Annotated[str, matches(DNS_NAME, "name of an object")]


def _not_ours(name: str) -> str:
    if name.startswith(OURS):
        raise ValueError(f"{name}: the pipeline sets it itself")
    return name


EnvName = Annotated[
    str, matches(ENV_NAME, "name of an environment variable"), AfterValidator(_not_ours)
]


class Toleration(Section):
    """A taint of nodes that a pod accepts."""

    key: LabelKey | None = None
    """Without one, and with the operator Exists, every taint is accepted."""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] | None = "NoSchedule"
    """null: every effect."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Toleration:
        if self.operator == "Equal" and (self.key is None or self.value is None):
            raise ValueError("operator Equal compares the value of a key: give both")
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists compares no value: leave it out, or say Equal")
        return self


class Selection(Section):
    """Which nodes a pod may run on, as given with a run: a selector of labels, and tolerations."""

    selector: Labels = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class Expression(Section):
    """A requirement of a node affinity."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()


class Accelerator(Section):
    """Devices of one kind."""

    type: Annotated[str, matches(rf"[a-z0-9.-]+/{LABEL}", "name of a resource")]
    """Resource name, such as nvidia.com/gpu, nvidia.com/mig-3g.40gb or amd.com/gpu."""
    count: int = Field(ge=0)


class Spot(Selection):
    """What is added for nodes that may be taken away; a stage then resumes on another."""


class Pool(Selection):
    """Machines for the steps of one role, and what else their pods are to have."""

    cpu: Cpu
    """Cores to ask for, as Kubernetes writes them; a step uses no more."""
    cpu_limit: Cpu | None = None
    """Cores at most; a namespace with a quota of CPU limits asks for it."""
    memory: Memory
    hours: float = Field(ge=0.1)
    """After which a step, or a TrainJob, is stopped; the next try resumes."""
    shm: Space | None = None
    """Size of /dev/shm, out of ``memory``: what worker processes share."""
    scratch: Space = "10Gi"
    """Size of /tmp, on the disk of the node: all that a step writes beside the store."""
    accelerator: Accelerator | None = None
    affinity: tuple[Expression, ...] = ()
    spot: Spot | None = None
    labels: Labels = Field(default_factory=dict)
    """Of the pods, such as kueue.x-k8s.io/queue-name."""
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    pull_secrets: tuple[DnsName, ...] = ()
    """Secrets with logins of registries, beside those of the account of the steps."""
    env: dict[EnvName, str] = Field(default_factory=dict)
    """Environment variables, such as proxies; never keys, which everybody could read."""
    run_as_user: int | None = Field(default=None, ge=1)
    """The user of the steps; that of the image is 10001. They never run as root."""
    run_as_group: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits_itself(self) -> Pool:
        if self.shm and bytes_of(self.shm) > bytes_of(self.memory):
            raise ValueError(
                f"shm ({self.shm}) is more than memory ({self.memory}), out of which it comes"
            )
        if self.cpu_limit and cores_of(self.cpu_limit) < cores_of(self.cpu):
            raise ValueError(f"cpu_limit ({self.cpu_limit}) is less than cpu ({self.cpu})")
        return self

    @property
    def cores(self) -> int:
        """Return ``cpu`` as the number of processes and threads that it is good for."""
        return math.ceil(cores_of(self.cpu))

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
    """Pretraining; and fine-tuning, unless that has a pool of its own."""
    finetune: Pool | None = None
    """Fine-tuning, on GPUs of another kind."""

    @model_validator(mode="after")
    def _finetuning_has_gpus_if_any(self) -> Profile:
        if self.finetune and self.gpu.accelerator and not self.finetune.accelerator:
            raise ValueError("finetune.accelerator: missing, and the pool gpu has one")
        return self


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
    """Taints that are accepted, as given with the run."""
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
