"""node_pools.yaml: the machines of a cluster, and how a step asks for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import dsl, kubernetes

from neurofoundry.errors import UsageError
from neurofoundry.kubeflow.schemas import Pool, Profile
from neurofoundry.params import read_text, read_yaml, validate

ROLES = tuple(Profile.model_fields)
"""Of the steps; the last has the machines of `gpu` where a profile gives it none."""
SHIPPED = Path(__file__).with_name("node_pools.yaml")

CORES = "NEUROFOUNDRY_CORES"
"""Environment variable: the cores that a step uses (neurofoundry/runtime/machine.py)."""

MOUNT = "/store"
"""Where the volume is mounted in every step."""


def read(profile: str, path: Path = SHIPPED, *, spot: bool = False) -> dict[str, Pool]:
    """Read the pools of a profile, by role. Raises UsageError naming the profile and the key."""
    profiles = read_yaml(read_text(path), origin=str(path))
    if not isinstance(profiles, dict) or profile not in profiles:
        known = ", ".join(map(str, profiles)) if isinstance(profiles, dict) else "none"
        raise UsageError(f"{path}: no profile '{profile}'; there is {known}.")
    values = validate(profiles[profile], Profile, origin=f"{path}: {profile}")
    pools: dict[str, Pool] = {role: pool for role in ROLES if (pool := getattr(values, role))}
    return {role: pool.on_spot() if spot else pool for role, pool in pools.items()}


def plain(pool: Pool) -> list[dict[str, str]]:
    """Return the tolerations of a pool as Kubernetes writes them."""
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
    _ask_for_machine(task, pool)
    _describe_pod(task, pool)
    if pool.accelerator and accelerators is not None:
        # A parameter of type int is read as empty by the driver, and the pod gets no GPU.
        task.set_accelerator_type(pool.accelerator.type)
        task.set_accelerator_limit(accelerators)
    kubernetes.add_node_selector_json(task, selector)
    kubernetes.add_toleration_json(task, tolerations)
    _mount(task, pool, site)
    kubernetes.set_timeout(task, int((hours or pool.hours) * 3600))
    return task


def _ask_for_machine(task: dsl.PipelineTask, pool: Pool) -> None:
    task.set_cpu_request(pool.cpu)
    if pool.cpu_limit:
        task.set_cpu_limit(pool.cpu_limit)
    # Without a limit a pod sees all cores of its node. No parameter: it changes no result.
    task.set_env_variable(CORES, str(pool.cores))
    task.set_memory_request(pool.memory)
    task.set_memory_limit(pool.memory)
    if pool.affinity:
        expressions = [each.model_dump(mode="json") for each in pool.affinity]
        kubernetes.add_node_affinity(task, match_expressions=expressions)


def _describe_pod(task: dsl.PipelineTask, pool: Pool) -> None:
    """Give the pod of a step what admins ask of pods: labels, accounts, environment."""
    # Not as root is all that is missing where Pod Security is `restricted`; the backend sets the
    # rest. Without a user of the pool it is the image's.
    user = {"run_as_user": pool.run_as_user, "run_as_group": pool.run_as_group}
    given = {name: value for name, value in user.items() if value is not None}
    kubernetes.set_security_context(task, run_as_non_root=True, **given)
    for name, value in pool.labels.items():
        kubernetes.add_pod_label(task, name, value)
    for name, value in pool.annotations.items():
        kubernetes.add_pod_annotation(task, name, value)
    if pool.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(pool.pull_secrets))
    for name, value in pool.env.items():
        task.set_env_variable(name, value)


def _mount(task: dsl.PipelineTask, pool: Pool, site: Site) -> None:
    """Give a step the store, the key of W&B, shared memory, and a /tmp: its root is read-only."""
    kubernetes.mount_pvc(task, pvc_name=site.claim, mount_path=MOUNT)
    secret = {"api-key": "WANDB_API_KEY"}
    kubernetes.use_secret_as_env(task, site.secret, secret, optional=True)
    empty = functools.partial(kubernetes.empty_dir_mount, task)
    if pool.shm:
        empty(volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=pool.shm)
    empty(volume_name="scratch", mount_path="/tmp", size_limit=pool.scratch)
