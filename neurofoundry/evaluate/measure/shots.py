"""What an encoder's features tell with a few examples a class, or by their nearest neighbours: no
network is trained, and nothing is chosen on validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.preprocessing import StandardScaler

from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.inputs import Features, Inputs
from neurofoundry.evaluate.measure.performance import persons_to_count, shortage
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.intervals import Estimate
from neurofoundry.stats.metrics import Values
from neurofoundry.tasks import Task

SHOTS = [
    *("task", "encoder", "probe", "shots", "split", "metric", "value", "low", "high"),
    *("draw_sd", "draws", "subjects", "reason"),
]

EXAMPLES = (1, 5, 10)
"""Training persons of every class, one scan each."""

DRAWS = 10
"""Of the examples; a value is the mean over them."""

NEIGHBOURS = 20
"""Training scans that vote, as in DINO (Caron et al. 2021); fewer where there are fewer."""

BLOCK = 1024
"""Scans whose neighbours are sought at once, to save memory."""

TEMPERATURE = 0.07
"""Of the votes by cosine similarity (Wu et al. 2018)."""

Probe = tuple[str, float | None]
"""Its name, and the examples of every class that it learns from; None: all."""


def measure(
    tasks: Sequence[Evidence],
    features: Mapping[str, Features],
    inputs: Inputs,
    *,
    params: EvaluateParams,
    seed: int,
) -> pd.DataFrame:
    """SHOTS: a row a task, encoder, probe, number of examples a class and split, of the primary
    metric.

    ``linear`` is a logistic regression on standardized features with a fixed penalty, for
    classifications; ``nearest`` the vote of the nearest training scans, with all labels (``shots``
    n/a). The standardization is that of all training scans, which takes no label. All encoders
    learn from the same examples; intervals are of the choice of the tested persons.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        for encoder, of_encoder in features.items():
            for (probe, shots), made in _predict(evidence, of_encoder, inputs, seed).items():
                head = {"task": evidence.name, "encoder": encoder, "probe": probe, "shots": shots}
                rows += [{**head, **row} for row in _rows(evidence, made, params)]
    return table_of(rows, SHOTS)


def _probes(task: Task) -> Iterator[Probe]:
    if task.classes:
        yield from (("linear", shots) for shots in EXAMPLES)
    yield "nearest", None


def _predict(
    evidence: Evidence, features: Features, inputs: Inputs, seed: int
) -> dict[Probe, Values | str]:
    """Return what each probe predicts for every scan (draws, scans, …), each scan by what was
    learned from the training persons of its fold; or why there is nothing."""
    outputs: dict[Probe, Values | str] = {}
    for fold, rows in evidence.by_fold(0):
        train = evidence.task.select(inputs.train(fold)).sort_values("scan_id")
        train = train[train["scan_id"].isin(features.scan_ids)].reset_index(drop=True)
        scan_ids = train["scan_id"], evidence.scans["scan_id"][rows]
        learned, tested = _standardized(*map(features.of, scan_ids))
        for probe in _probes(evidence.task):
            before = outputs.get(probe)
            if isinstance(before, str):
                continue
            said: Values | str = _too_few(evidence.task, train, probe[1])
            if not said:
                key = f"{seed} {evidence.name} {fold}"
                said = _say(evidence.task, probe, train, learned, tested, key)
            if isinstance(said, str):
                outputs[probe] = said
                continue
            if before is None:
                outputs[probe] = before = np.empty((len(said), len(rows), *said.shape[2:]))
            before[:, rows] = said
    return outputs


def _standardized(learned: Values, tested: Values) -> tuple[Values, Values]:
    """Return features less the mean of those learned from, over their standard deviation."""
    if not len(learned):
        return learned, tested
    scaler = StandardScaler().fit(learned)
    return scaler.transform(learned), scaler.transform(tested)


def _say(
    task: Task, probe: Probe, train: pd.DataFrame, learned: Values, tested: Values, key: str
) -> Values:
    """Return what a probe says of scans with the features ``tested``, after learning from all of
    ``train`` or, in each draw, from examples of it: (draws, scans, …)."""
    _, shots = probe
    if not shots:
        targets = task.targets(train)
        return nearest(learned, targets, tested, classes=len(task.classes))[None]
    said = []
    for draw in range(DRAWS):
        chosen = _examples(train, task, int(shots), f"{key} {shots} {draw}")
        model = task.linear_model().fit(learned[chosen.index], task.targets(chosen))
        said.append(task.predict(model, tested))
    return np.stack(said)


def _too_few(task: Task, train: pd.DataFrame, shots: float | None) -> str:
    """Return why so many examples cannot be drawn; '' if they can."""
    if train.empty:
        return "finetune has kept no features of training scans"
    for name in task.classes:
        found = train["person"][train[task.column] == name].nunique()
        if found < (shots or 1):
            who = f"{counted(found, 'training subject')} with {task.column}={name}"
            return f"{who}, {shots or 1:g} are needed"
    return ""


def _examples(train: pd.DataFrame, task: Task, shots: int, key: str) -> pd.DataFrame:
    """Return a scan each of so many persons of every class, a function of ``key``."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    shuffled = train.sample(frac=1, random_state=np.random.default_rng(number))
    once = shuffled.drop_duplicates(["person", task.column])
    chosen: pd.DataFrame = once.groupby(task.column).head(shots)
    return chosen


def nearest(x: Values, y: Values, tested: Values, *, classes: int) -> Values:
    """Return probabilities (scans, classes), or means (scans,), by the vote of the nearest training
    scans ``x`` (scans, features), with weights exp(cosine / ``TEMPERATURE``)."""
    labels = np.eye(classes)[y.astype(int)] if classes else y
    known, beyond = _unit(x), max(0, len(x) - NEIGHBOURS)
    said = np.empty((len(tested), *labels.shape[1:]))
    for start in range(0, len(tested), BLOCK):
        cosine = _unit(tested[start : start + BLOCK]) @ known.T
        near = np.argpartition(cosine, beyond, axis=1)[:, beyond:]
        weights = softmax(np.take_along_axis(cosine, near, axis=1) / TEMPERATURE, axis=1)
        said[start : start + BLOCK] = np.einsum("sn,sn...->s...", weights, labels[near])
    return said


def _unit(values: Values) -> NDArray[np.float32]:
    """Return vectors of length 1, in single precision, which is enough to tell neighbours."""
    length = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return np.asarray(values / length, np.float32)


def _rows(
    evidence: Evidence, made: Values | str, params: EvaluateParams
) -> Iterator[dict[str, object]]:
    task = evidence.task
    for split in evidence.splits:
        inside = evidence.inside(split)
        head: dict[str, object] = {"split": split, "metric": task.primary}
        head["subjects"] = evidence.scans["person"][inside].nunique()
        reason = (
            made
            if isinstance(made, str)
            else shortage(evidence, split, min_subjects=params.min_subjects)
        )
        if isinstance(made, str) or reason:
            yield {**head, **cells(Estimate(None, None, None, reason))}
            continue
        labels, persons = evidence.labels[inside], evidence.persons[inside]
        outputs = made[:, inside]
        value, error = task.primary_with_error(labels, outputs, persons)
        error *= evidence.widening(split)
        counted = persons_to_count(evidence, split)
        of_draws = [task.primary_with_error(labels, each[None], persons)[0] for each in outputs]
        spread = float(np.std(of_draws, ddof=1)) if len(of_draws) > 1 else None
        estimate = intervals.with_error(value, error, task.primary, counted)
        yield {**head, **cells(estimate), "draw_sd": spread, "draws": len(of_draws)}
