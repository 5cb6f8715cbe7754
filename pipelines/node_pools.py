"""node_pools.yaml: the machines of a cluster, and how a step asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from kfp import dsl, kubernetes
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neurofoundry.errors import UsageError

ROLES = ("light", "cpu", "gpu")
SHIPPED = Path(__file__).with_name("node_pools.yaml")

MOUNT = "/store"
"""Where the volume is mounted in every step."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Toleration(_Section):
    """As in a pod."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"


class Expression(_Section):
    """A node must match it, as in a node affinity."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = []


class Accelerator(_Section):
    """Devices of one kind."""

    type: str
    """Resource name, such as nvidia.com/gpu."""
    count: int = Field(ge=0)


class Spot(_Section):
    """What is added for nodes that may be taken away; a stage then resumes on another."""

    selector: dict[str, str] = {}
    tolerations: list[Toleration] = []


class Pool(_Section):
    """Machines for the steps of one role."""

    cpu: str
    """Cores, as Kubernetes writes them."""
    memory: str
    hours: float = Field(gt=0)
    """After which a step is stopped; its retry resumes."""
    shm: str | None = None
    """Size of /dev/shm, out of ``memory``: what worker processes share."""
    scratch: str = "10Gi"
    """Size of /tmp, on the disk of the node: all that a step writes beside the store."""
    accelerator: Accelerator | None = None
    selector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    affinity: list[Expression] = []
    spot: Spot | None = None

    def on_spot(self) -> Pool:
        """The same pool on nodes that may be taken away."""
        if self.spot is None:
            return self
        selector = self.selector | self.spot.selector
        tolerations = self.tolerations + self.spot.tolerations
        return self.model_copy(update={"selector": selector, "tolerations": tolerations})

    def machines(self) -> dict[str, Any]:
        """What a step needs to ask for such machines itself; labels are given with each run."""
        without = {"selector", "tolerations", "spot"}
        return self.model_dump(exclude=without, exclude_none=True)


def read(profile: str, path: Path = SHIPPED, *, spot: bool = False) -> dict[str, Pool]:
    """The pools of a profile by role. Raises UsageError that names the key."""
    try:
        profiles = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: the node pools cannot be read ({error}).") from error
    if not isinstance(profiles, dict) or profile not in profiles:
        known = ", ".join(profiles) if isinstance(profiles, dict) else "none"
        raise UsageError(f"{path}: no profile '{profile}'; there is {known}.")
    roles = profiles[profile]
    if not isinstance(roles, dict) or set(roles) != set(ROLES):
        raise UsageError(f"{path}: {profile}: expected the roles {', '.join(ROLES)}.")
    try:
        pools = {role: Pool.model_validate(values) for role, values in roles.items()}
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {profile}: {key}: {first['msg']}.") from error
    return {role: pool.on_spot() if spot else pool for role, pool in pools.items()}


def plain(pool: Pool) -> list[dict[str, str]]:
    """The tolerations of a pool, as Kubernetes writes them."""
    return [each.model_dump(exclude_none=True) for each in pool.tolerations]


@dataclass(frozen=True)
class Site:
    """What all steps of a run share. All but the secret are parameters of the pipeline."""

    image: Any
    claim: Any
    """The persistent volume claim, mounted at MOUNT."""
    secret: str
    """Kubernetes secret with the key ``api-key`` of W&B; it need not exist."""


def place(
    task: dsl.PipelineTask,
    name: str,
    pool: Pool,
    site: Site,
    *,
    selector: Any,
    tolerations: Any,
    accelerators: Any = None,
    hours: float | None = None,
) -> dsl.PipelineTask:
    """Call ``task`` by ``name``, and ask for a machine of ``pool`` for it.

    ``selector``, ``tolerations`` and ``accelerators`` are parameters of the pipeline, whose
    defaults are those of the pool. ``hours`` are those of the pool if not given.
    """
    task.set_display_name(name)
    task.set_container_image(site.image)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.mount_pvc(task, pvc_name=site.claim, mount_path=MOUNT)
    secret = {"api-key": "WANDB_API_KEY"}
    kubernetes.use_secret_as_env(task, site.secret, secret, optional=True)
    task.set_cpu_request(pool.cpu)
    task.set_memory_request(pool.memory)
    task.set_memory_limit(pool.memory)
    if pool.accelerator and accelerators is not None:
        # A parameter of type int is read as empty by the driver, and the pod gets no GPU.
        task.set_accelerator_type(pool.accelerator.type)
        task.set_accelerator_limit(accelerators)
    kubernetes.add_node_selector_json(task, selector)
    kubernetes.add_toleration_json(task, tolerations)
    if pool.affinity:
        expressions = [each.model_dump() for each in pool.affinity]
        kubernetes.add_node_affinity(task, match_expressions=expressions)
    if pool.shm:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shm",
            mount_path="/dev/shm",
            medium="Memory",
            size_limit=pool.shm,
        )
    # So that the root may be read-only.
    kubernetes.empty_dir_mount(
        task, volume_name="scratch", mount_path="/tmp", size_limit=pool.scratch
    )
    kubernetes.set_timeout(task, int((hours or pool.hours) * 3600))
    return task
