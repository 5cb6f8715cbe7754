"""What a run's details say of the pipeline's steps.

The API of Kubeflow Pipelines lists the nodes of Argo: for each step its driver, its executor, and
wrappers of loops and of retries (`executor(0)`), for some without a name or a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from pipelines import compiled, nodes

TOGETHER = timedelta(seconds=2)
"""Between the start of a step and that of the pod that waits for a machine."""
PATIENT = timedelta(minutes=10)
"""For which a step may wait for a machine before it is said."""
QUICK = timedelta(minutes=5)
"""In which a step fails whose parameters or files are wrong."""

FAILED = ("FAILED", "ERROR")
FEW = 4
"""Shards or methods in the same state that are named one by one."""


@dataclass(frozen=True)
class Step:
    """A step of a run, one iteration of a loop."""

    name: str
    """As the pipeline displays it."""
    state: str
    item: str = ""
    """The shard or the method, if it is one of a loop."""
    """waiting, running, done or failed."""
    pod: str = ""
    since: datetime | None = None
    lasted: timedelta = timedelta()

    @property
    def title(self) -> str:
        """Name and item."""
        return f"{self.name} {self.item}".rstrip()


def names(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return the name of Argo's node of each step to the step's display name."""
    components = documents[0]["components"]
    found = {}
    for component in (documents[0]["root"], *components.values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in components[task["componentRef"]["name"]]:
                found[key] = task["taskInfo"]["name"]
    return found


def read(
    listed: Sequence[Any],
    known: Mapping[str, str],
    items: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Step]:
    """Return the steps that have begun, in the order in which they did.

    ``items`` are what the step of each name is done for, if it is done in a loop.
    """
    found = nodes.full_names(listed)
    # A pod that waits leads nowhere, so that its id is not known: it began with its step.
    pending = [
        node
        for node in listed
        if str(node.display_name).startswith("executor") and node.state == "PENDING"
    ]
    steps = []
    for node in sorted(
        (node for node in listed if node.display_name in known and node.state), key=_start
    ):
        name, place = known[node.display_name], nodes.full_name(node, found)
        state = "failed" if node.state in FAILED else "done"
        if node.state in ("RUNNING", "PENDING"):
            state = "waiting" if _taken_of(pending, node) else "running"
        number, of = nodes.iteration(place), items.get(name, ())
        steps.append(
            Step(
                name,
                state,
                of[number] if number is not None and number < len(of) else "",
                _pod(nodes.last_try(place, found)),
                node.start_time,
                _end(node) - _start(node),
            )
        )
    return steps


def failed_before(listed: Sequence[Any]) -> list[str]:
    """Return the drivers that failed: what prepares a step, before its container begins."""
    named = (str(node.display_name) for node in listed if node.state in FAILED)
    return [name for name in named if name.endswith("-driver")]


def changes(
    steps: Sequence[Step], told: dict[str, str], items: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yield a line for each kind of step whose count has changed, and note it in ``told``."""
    for name in dict.fromkeys(step.name for step in steps):
        line = _line(name, [step for step in steps if step.name == name], len(items.get(name, ())))
        if told.get(name) != line:
            told[name] = line
            yield line


def _line(name: str, steps: Sequence[Step], total: int) -> str:
    number = max(len(steps), total)
    if number == 1:
        return f"{name}: {steps[0].state}"
    parts = [f"{sum(step.state == 'done' for step in steps)} of {number} done"]
    for state in ("running", "waiting", "failed"):
        of = [step.item for step in steps if step.state == state]
        which = f" ({', '.join(of)})" if of and all(of) and len(of) <= FEW else ""
        parts += [f"{len(of)} {state}{which}"] if of else []
    return f"{name}: {', '.join(parts)}"


def long_waiting(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that have waited for a machine for long."""
    now = datetime.now(UTC)
    return [
        step
        for step in steps
        if step.state == "waiting" and step.since and now - step.since > PATIENT
    ]


def machine_of(documents: list[dict[str, Any]], name: str, given: Mapping[str, Any]) -> str:
    """Say what machine a step asks for: selector, tolerations, accelerator of its pool."""
    defaults = {
        key: kind.get("defaultValue") for key, kind in compiled.parameters(documents).items()
    }
    values = defaults | dict(given)
    label = next(
        component["executorLabel"]
        for key, component in documents[0]["components"].items()
        if component.get("executorLabel") and names(documents).get(key[len("comp-") :]) == name
    )
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]

    def value(holder: Mapping[str, Any], kind: str) -> Any:
        source = holder.get(kind, {})
        channel = source.get("componentInputParameter", "").removeprefix("pipelinechannel--")
        return values.get(channel, source.get("runtimeValue", {}).get("constant"))

    selector = value(platform.get("nodeSelector", {}), "nodeSelectorJson")
    tolerations = [
        each
        for listed in platform.get("tolerations", ())
        for each in value(listed, "tolerationJson") or ()
    ]
    resources = documents[0]["deploymentSpec"]["executors"][label]["container"]["resources"]
    accelerator = resources.get("accelerator", {}).get("resourceType", "none")
    return f"selector {selector}, tolerations {tolerations}, accelerator {accelerator}"


def _taken_of(pending: list[Any], step: Any) -> bool:
    """Say whether a pod that waits began with the step, and take it from the list."""
    for node in pending:
        if abs(_start(node) - _start(step)) <= TOGETHER:
            pending.remove(node)
            return True
    return False


def _pod(node: str) -> str:
    """Return the name of the pod of an executor: WORKFLOW-TEMPLATE-HASH for WORKFLOW-HASH."""
    workflow, _, number = node.rpartition("-")
    return f"{workflow}-system-container-impl-{number}" if node else ""


def _start(node: Any) -> datetime:
    return node.start_time or datetime.min.replace(tzinfo=UTC)


def _end(node: Any) -> datetime:
    return node.end_time or _start(node)
