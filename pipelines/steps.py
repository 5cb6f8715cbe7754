"""What a run's details say of the pipeline's steps.

The API of Kubeflow Pipelines lists the nodes of Argo: for each step its driver, its executor, and
wrappers of loops and of retries (`executor(0)`), for some without a name or a state. They name the
nodes that they lead to but not themselves, so a step's executor is the one that began with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pipelines import compiled

TOGETHER = timedelta(seconds=2)
"""Between the start of a step and that of its executor."""
PATIENT = timedelta(minutes=10)
"""For which a step may wait for a machine before it is said."""
QUICK = timedelta(minutes=5)
"""In which a step fails whose parameters or files are wrong."""

FAILED = ("FAILED", "ERROR")


@dataclass(frozen=True)
class Step:
    """A step of a run, one iteration of a loop."""

    name: str
    """As the pipeline displays it."""
    state: str
    """waiting, running, done or failed."""
    pod: str = ""
    since: datetime | None = None
    lasted: timedelta = timedelta()


def names(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return the name of Argo's node of each step to the step's display name."""
    components = documents[0]["components"]
    found = {}
    for component in (documents[0]["root"], *components.values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in components[task["componentRef"]["name"]]:
                found[key] = task["taskInfo"]["name"]
    return found


def read(nodes: Sequence[Any], known: Mapping[str, str]) -> list[Step]:
    """Return the steps that have begun, in the order in which they did."""
    executors = [node for node in nodes if node.display_name == "executor"]
    pending = [
        node
        for node in nodes
        if str(node.display_name).startswith("executor") and node.state == "PENDING"
    ]
    steps = []
    for node in sorted(
        (node for node in nodes if node.display_name in known and node.state), key=_start
    ):
        executor = _beginning_with(node, executors)
        state = "failed" if node.state in FAILED else "done"
        if node.state in ("RUNNING", "PENDING"):
            state = "waiting" if _beginning_with(node, pending) else "running"
        steps.append(
            Step(
                known[node.display_name],
                state,
                _pod(executor or node),
                node.start_time,
                _end(node) - _start(node),
            )
        )
    return steps


def failed_before(nodes: Sequence[Any]) -> list[str]:
    """Return the drivers that failed: what prepares a step, before its container begins."""
    named = (str(node.display_name) for node in nodes if node.state in FAILED)
    return [name for name in named if name.endswith("-driver")]


def changes(
    steps: Sequence[Step], told: dict[str, str], totals: Mapping[str, int]
) -> Iterator[str]:
    """Yield a line for each kind of step whose count has changed, and note it in ``told``."""
    for name in dict.fromkeys(step.name for step in steps):
        counts = Counter(step.state for step in steps if step.name == name)
        line = _line(name, counts, totals.get(name, 0))
        if told.get(name) != line:
            told[name] = line
            yield line


def _line(name: str, counts: Mapping[str, int], total: int) -> str:
    number = max(sum(counts.values()), total)
    if number == 1:
        return f"{name}: {next(iter(counts))}"
    parts = [f"{counts.get('done', 0)} of {number} done"]
    parts += [f"{counts[state]} {state}" for state in ("running", "waiting", "failed")
              if counts.get(state)]  # fmt: skip
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


def _beginning_with(node: Any, candidates: list[Any]) -> Any:
    """Return the candidate that began with ``node``, and take it from the list."""
    for candidate in candidates:
        if abs(_start(candidate) - _start(node)) <= TOGETHER:
            candidates.remove(candidate)
            return candidate
    return None


def _pod(node: Any) -> str:
    """Return the name of the pod of an executor's last try, from the node that it leads to.

    Argo names a pod WORKFLOW-TEMPLATE-HASH and its node WORKFLOW-HASH.
    """
    children = getattr(node, "child_tasks", None) or []
    if node.display_name != "executor" or not children:
        return ""
    workflow, _, number = str(children[-1].pod_name).rpartition("-")
    return f"{workflow}-system-container-impl-{number}"


def _start(node: Any) -> datetime:
    return node.start_time or datetime.min.replace(tzinfo=UTC)


def _end(node: Any) -> datetime:
    return node.end_time or _start(node)
