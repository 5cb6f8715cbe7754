from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import compiled, steps


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return compiled.read(compiled.COMMITTED)


def node(name: str | None, state: str, minutes: float, child: str = "") -> Any:
    children = [SimpleNamespace(pod_name=child)] if child else []
    start = datetime.now(UTC) - timedelta(minutes=minutes)
    return SimpleNamespace(
        display_name=name, state=state, start_time=start, end_time=None, child_tasks=children
    )


def waiting(minutes: float) -> list[Any]:
    return [
        node("pretrain-driver", "SUCCEEDED", minutes + 0.2),
        node("pretrain", "RUNNING", minutes),
        node("pretrain(0)", "RUNNING", minutes),
        node("executor", "RUNNING", minutes, child="wf-abc-123"),
        node("executor(0)", "PENDING", minutes),
        node(None, "", minutes),
    ]


def test_every_step_of_the_pipeline_has_a_name(documents: list[Any]) -> None:
    known = steps.names(documents)
    assert known["preprocess-shard"] == "preprocess a shard"
    assert len(known) == len(documents[0]["deploymentSpec"]["executors"])


def test_a_step_that_waits_for_its_machine_is_said_to_wait(documents: list[Any]) -> None:
    (step,) = steps.read(waiting(3), steps.names(documents))
    assert (step.name, step.state) == ("pretrain", "waiting")
    assert step.pod == "wf-abc-system-container-impl-123"
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
