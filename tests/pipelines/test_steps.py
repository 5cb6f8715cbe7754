from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import compiled, nodes, steps


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return compiled.read(compiled.COMMITTED)


def node(name: str | None, state: str, minutes: float, *children: str) -> Any:
    """A node of Argo that leads to the nodes of these full names."""
    start = datetime.now(UTC) - timedelta(minutes=minutes)
    return SimpleNamespace(
        display_name=name, state=state, start_time=start, end_time=None,
        child_tasks=[SimpleNamespace(pod_name=f"wf-abc-{nodes.fnv(each)}") for each in children],
    )  # fmt: skip


STEP = "wf-abc.for-loop-1.iteration-iterations(1:1).iteration-item.pretrain"


INSIDE = ("iteration-iterations", "iteration-item", "pretrain")
"""By what the names of loop, iteration and item go on in the step's."""


def waiting(minutes: float) -> list[Any]:
    """The second method's step waits for its machine."""
    loop, iteration, item = (STEP.partition(f".{each}")[0] for each in INSIDE)
    return [
        node("wf-abc", "RUNNING", minutes, loop),
        node("for-loop-1", "RUNNING", minutes, iteration),
        node("iteration-iterations(1:1)", "RUNNING", minutes, item),
        node("iteration-item", "RUNNING", minutes, f"{item}.pretrain-driver"),
        node("pretrain-driver", "SUCCEEDED", minutes + 0.2, STEP),
        node("pretrain", "RUNNING", minutes, f"{STEP}(0)"),
        node("pretrain(0)", "RUNNING", minutes, f"{STEP}(0).executor"),
        node("executor", "RUNNING", minutes, f"{STEP}(0).executor(0)"),
        node("executor(0)", "PENDING", minutes),
        node(None, "", minutes),
    ]


def test_every_step_of_the_pipeline_has_a_name(documents: list[Any]) -> None:
    known = steps.names(documents)
    assert known["preprocess-shard"] == "preprocess a shard"
    assert len(known) == len(documents[0]["deploymentSpec"]["executors"])


def test_a_step_that_waits_for_its_machine_is_said_to_wait(documents: list[Any]) -> None:
    items = {"pretrain": ["simclr", "mae"]}
    (step,) = steps.read(waiting(3), steps.names(documents), items)
    assert (step.title, step.state) == ("pretrain mae", "waiting")
    assert step.pod == f"wf-abc-system-container-impl-{nodes.fnv(f'{STEP}(0).executor(0)')}"
    assert steps.long_waiting([step]) == []
    (step,) = steps.read(waiting(11), steps.names(documents))
    assert steps.long_waiting([step]) == [step]


def test_what_a_waiting_step_asks_for_is_said(documents: list[Any]) -> None:
    given = {"gpu_selector": {"pool": "h200"}}
    said = steps.machine_of(documents, "pretrain", given)
    assert "selector {'pool': 'h200'}" in said
    assert "'key': 'nvidia.com/gpu'" in said
    assert said.endswith("accelerator nvidia.com/gpu")
    said = steps.machine_of(documents, "configure", {})
    assert said == "selector {}, tolerations [], accelerator none"


def test_a_line_is_said_once(documents: list[Any]) -> None:
    told: dict[str, str] = {}
    begun = steps.read(waiting(1), steps.names(documents))
    assert list(steps.changes(begun, told, {})) == ["pretrain: waiting"]
    assert list(steps.changes(begun, told, {})) == []
    items = {"pretrain": ["simclr", "mae"]}
    begun = steps.read(waiting(1), steps.names(documents), items)
    assert list(steps.changes(begun, told, items)) == ["pretrain: 0 of 2 done, 1 waiting (mae)"]
