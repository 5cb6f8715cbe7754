"""The few numbers by which whole pipeline runs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from neurofoundry.contracts.encoder import UNTRAINED
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.results import Results
from neurofoundry.evaluate.rows import ENDS, find_row
from neurofoundry.runtime.experiment import metric_name

MOST = 40
"""Numbers at most: more columns than that nobody reads."""


def initialization(results: Results) -> str:
    """Return the initialization that stands for a run: that of the promotion rule, or else the
    first one that is pretrained, or else the first."""
    if results.params.promotion:
        return results.params.promotion.initialization
    names = list(dict.fromkeys(results.inputs.runs["init"]))
    pretrained = (
        name for name in names if results.inputs.starts_from(name) not in (*UNTRAINED, None)
    )
    return str(next(pretrained, names[0] if names else ""))


def primary(results: Results) -> dict[str, float]:
    """Return the primary metric of every task on test, of `initialization`, by the task."""
    init = initialization(results)
    found = {each.name: _score(results, each, init, "test") for each in results.tasks}
    return {name: score["value"] for name, score in found.items() if "value" in score}


def numbers(results: Results) -> dict[str, float]:
    """Return at most ``MOST`` numbers, as TASK_METRIC_SPLIT_INITIALIZATION.

    `initialization` has its interval (…_low, …_high) on test and ood, and its value on val, to
    choose by. Then follow the site's balanced accuracy from each encoder, and the other
    initializations, the reference first, as far as there is room.
    """
    init = initialization(results)
    chosen: dict[str, float] = {}
    groups = [
        *_of(results, init, "test", ENDS),
        *_of(results, init, "ood", ENDS),
        *_of(results, init, "val", ("value",)),
        *_sites(results),
    ]
    for other in _others(results, init):
        for split in ("test", "ood"):
            groups += _of(results, other, split, ENDS)
    for group in groups:
        if len(chosen) + len(group) <= MOST - len(results.inputs.encoders):
            chosen |= group
    return {metric_name(name): value for name, value in chosen.items()}


def scores(results: Results, evidence: Evidence, init: str) -> dict[str, float]:
    """Return the primary metric of a model on val, test and ood, with intervals."""
    groups = [_score(results, evidence, init, split) for split in ("val", "test", "ood")]
    name = evidence.task.primary
    return {
        f"{name}_{split}_{end}": value
        for split, group in zip(("val", "test", "ood"), groups, strict=True)
        for end, value in group.items()
    }


def _others(results: Results, init: str) -> list[str]:
    names = dict.fromkeys([results.params.reference, *results.inputs.runs["init"]])
    return [str(name) for name in names if name != init]


def _of(results: Results, init: str, split: str, ends: Sequence[str]) -> Iterator[dict[str, float]]:
    """Yield the numbers of each task."""
    for each in results.tasks:
        score = _score(results, each, init, split)
        name = f"{each.name}_{each.task.primary}_{split}_{init}"
        suffix = {"value": "", "low": "_low", "high": "_high"}
        yield {f"{name}{suffix[end]}": score[end] for end in ends if end in score}


def _score(results: Results, evidence: Evidence, init: str, split: str) -> dict[str, Any]:
    """Return value, low and high of the primary metric, as far as they can be estimated."""
    row = find_row(
        results.measured.measures,
        task=evidence.name,
        init=init,
        fraction=evidence.fraction,
        split=split,
        metric=evidence.task.primary,
    )
    return {end: row[end] for end in ENDS if row and row[end] is not None}


def _sites(results: Results) -> Iterator[dict[str, float]]:
    table = results.sites
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        if row["value"] is not None and row["encoder"] not in UNTRAINED:
            yield {f"site_accuracy_{row['encoder']}": row["value"]}


def pace(results: Results) -> dict[str, float]:
    """Return the scans per second of pretraining each encoder, where that is known.

    They are no part of the evaluation, which is the same whenever it is made.
    """
    found = {}
    for each in results.inputs.encoders:
        noted = results.inputs.circumstances.get(f"pretrain/{each.name}", {})
        value = noted.get("scans_per_second")
        if isinstance(value, int | float):
            found[f"scans_per_second_{each.name}"] = float(value)
    return found
