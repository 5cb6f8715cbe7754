"""Which node of Argo is which: the full names of a run's nodes, from their ids.

The API of Kubeflow Pipelines lists Argo's nodes by a short name, `preprocess-shard` a hundred
times, with the ids of the nodes that follow each. Argo makes an id from a node's full name, which
holds the names of all that it lies in and the number of each iteration; so names are tried until
all ids are met. (Argo Workflows, `NodeID`: the workflow's name, and FNV-1a of the full name.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

ITERATION = "iteration-iterations("
FNV_OFFSET = 2166136261
FNV_PRIME = 16777619


def full_names(nodes: Sequence[Any]) -> dict[str, str]:
    """Return the full name of each id that the nodes of a run lead to, as far as it is found."""
    ids = {child for node in nodes for child in children(node)}
    if not ids:
        return {}
    workflow = min(ids).rpartition("-")[0]
    hashes = {int(each.rpartition("-")[2]) for each in ids if each.startswith(f"{workflow}-")}
    names = {str(node.display_name) for node in nodes if node.display_name}
    iterations = _suffixes(name for name in names if name.startswith(ITERATION))
    others = _suffixes(name for name in names if not name.startswith(ITERATION))
    found: dict[str, str] = {}
    open_names = [(workflow, fnv(workflow))]
    while open_names:
        name, before = open_names.pop()
        in_loop = name.rpartition(".")[2].startswith("for-loop")
        for suffix in (*others, *iterations) if in_loop else others:
            number = fnv(suffix, before)
            if number in hashes and f"{workflow}-{number}" not in found:
                found[f"{workflow}-{number}"] = name + suffix
                open_names.append((name + suffix, number))
    return found


def full_name(node: Any, found: dict[str, str]) -> str:
    """Return the full name of a node, from those of the nodes inside it; empty if unknown."""
    ending = f".{node.display_name}"
    for child in children(node):
        name = found.get(child, "")
        start = name.rfind(ending)
        if start >= 0 and name[start + len(ending) :].startswith(("(", ".")):
            return name[: start + len(ending)]
    return ""


def iteration(name: str) -> int | None:
    """Return the number of the innermost iteration that a node lies in, from 0."""
    numbers = re.findall(rf"\.{re.escape(ITERATION)}(\d+):\d+\)", name)
    return int(numbers[-1]) if numbers else None


def last_try(name: str, found: dict[str, str]) -> str:
    """Return the id of the last try of the executor inside a step; empty if there was none."""
    tries = {
        tuple(int(each) for each in match.groups()): id_
        for id_, inner in found.items()
        if (match := re.fullmatch(rf"{re.escape(name)}\((\d+)\)\.executor\((\d+)\)", inner))
    }
    return tries[max(tries)] if tries else ""


def children(node: Any) -> list[str]:
    """Return the ids of the nodes that a node leads to."""
    return [str(child.pod_name) for child in getattr(node, "child_tasks", None) or ()]


def fnv(text: str, before: int = FNV_OFFSET) -> int:
    """Return FNV-1a, 32 bits, of ``text`` after what has the hash ``before``."""
    for byte in text.encode():
        before = (before ^ byte) * FNV_PRIME & 0xFFFFFFFF
    return before


def _suffixes(names: Iterable[str]) -> list[str]:
    """Return by what full names may grow: a task, or the number of a try."""
    suffixes: set[str] = set()
    for name in names:
        task, bracket, number = name.rpartition("(")
        suffixes.add(f".{name}")
        if bracket and ":" not in number:
            suffixes |= {f".{task}", f"({number}"}
    return sorted(suffixes)
