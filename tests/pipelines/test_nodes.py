"""Against what the API server answered while the pipeline ran on a real control plane."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import nodes

ANSWERS = Path(__file__).parents[1] / "support/kubeflow_answers"


def listed(answer: str) -> list[Any]:
    details = json.loads((ANSWERS / f"{answer}.json").read_text())["body"]["run_details"]
    return [
        SimpleNamespace(
            display_name=each.get("display_name"),
            child_tasks=[SimpleNamespace(**child) for child in each.get("child_tasks", ())],
        )
        for each in details["task_details"]
    ]


def test_the_hash_is_fnv_1a() -> None:
    """The published values of Fowler, Noll and Vo."""
    assert nodes.fnv("") == 0x811C9DC5
    assert nodes.fnv("a") == 0xE40C292C
    assert nodes.fnv("foobar") == nodes.fnv("bar", nodes.fnv("foo")) == 0xBF9CF968


@pytest.mark.parametrize("answer", ["run-succeeded", "run-failed", "run-rbac", "run-terminated"])
def test_every_id_gets_its_name(answer: str) -> None:
    answered = listed(answer)
    ids = {child for node in answered for child in nodes.children(node)}
    assert set(nodes.full_names(answered)) == ids


def test_every_shard_is_told_from_the_others() -> None:
    answered = listed("run-running")
    found = nodes.full_names(answered)
    shards = [nodes.full_name(node, found) for node in answered
              if node.display_name == "preprocess-shard"]  # fmt: skip
    assert sorted(map(str, map(nodes.iteration, shards))) == sorted(map(str, range(24)))


def test_the_pod_is_that_of_the_last_try() -> None:
    tries = ["wf.step(0).executor(0)", "wf.step(0).executor(1)", "wf.step(0).executor"]
    found = {f"wf-{nodes.fnv(each)}": each for each in tries}
    assert nodes.last_try("wf.step", found) == f"wf-{nodes.fnv(tries[1])}"
    assert nodes.last_try("wf.other", found) == ""


def test_a_run_that_has_not_begun_has_none() -> None:
    assert nodes.full_names([]) == {}
