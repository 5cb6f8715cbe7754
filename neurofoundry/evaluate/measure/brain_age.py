"""How much older the brains of the ill look than those of the healthy of the same age."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from neurofoundry.errors import counted
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.rows import cells, table_of
from neurofoundry.stats import comparisons, intervals
from neurofoundry.stats.corrections import FEWEST_LABELS
from neurofoundry.stats.intervals import Estimate, Jackknife
from neurofoundry.stats.metrics import Values

BRAIN_AGE = [
    *("task", "init", "split", "label", "ill", "healthy", "corrected", "value", "low", "high", "p"),
    *("subjects_ill", "subjects_healthy", "learned_from_ill", "reason"),
]

CORRECTIONS = ("no", "val", "age")
"""None; a line of the gap on age in the healthy of val, taken off (Beheshti et al., NeuroImage:
Clinical 24, 2019; de Lange & Cole, ibid. 26, 2020); and age as a covariate among the tested (Le et
al., Frontiers in Aging Neuroscience 10, 2018)."""


def measure(tasks: Sequence[Evidence], inputs: Inputs, *, params: EvaluateParams) -> pd.DataFrame:
    """BRAIN_AGE: for every regression of age and every class but the first of another task, the
    mean of predicted − true age in those of the class, less that in those of the first class.

    A model takes the old for younger and the young for older than they are (regression to the
    mean), so that two groups of different ages differ in the gap whatever their brains are like:
    ``corrected`` says what was done about it. ``learned_from_ill`` counts the training persons of
    the class: a model that has learned from the ill takes what is theirs for age.
    """
    rows: list[dict[str, object]] = []
    for evidence in tasks:
        if evidence.task.column == "age" and evidence.task.numeric_label:
            for other in tasks:
                rows += _of_task(evidence, other, inputs, params)
    return table_of(rows, BRAIN_AGE)


def _of_task(
    evidence: Evidence, other: Evidence, inputs: Inputs, params: EvaluateParams
) -> Iterator[dict[str, object]]:
    """Yield the rows of the classes of another task."""
    train = evidence.task.select(inputs.train())
    for name in other.task.classes[1:]:
        label = _labels(evidence.scans, other, name)
        taught = train[_labels(train, other, name) == 1]["person"].nunique()
        head = {"task": evidence.name, "label": other.name, "ill": name}
        head |= {"healthy": other.task.classes[0], "learned_from_ill": taught}
        for split in evidence.splits:
            inside = evidence.inside(split)
            counts = [len(set(evidence.persons[inside & (label == k)])) for k in (0, 1)]
            row = {"split": split, "subjects_healthy": counts[0], "subjects_ill": counts[1]}
            for corrected in CORRECTIONS:
                found = _estimates(evidence, split, label, corrected, counts, params.min_subjects)
                for init, estimate in found.items():
                    of_model = {"init": init, "corrected": corrected, **cells(estimate)}
                    yield {**head, **row, **of_model, "p": estimate.p}


def _labels(scans: pd.DataFrame, other: Evidence, name: str) -> Values:
    """Return 1 for scans of a class, 0 for those of the first class, else NaN: (scans,)."""
    chosen = other.task.select(scans)[other.task.column].astype(str)
    known = chosen.map({other.task.classes[0]: 0.0, name: 1.0})
    # By place: a cross-validation has a scan twice.
    takes_part = scans["scan_id"].isin(other.task.select(scans)["scan_id"]).to_numpy()
    label = np.full(len(scans), np.nan)
    label[takes_part] = known.to_numpy(float)
    return label


def _estimates(
    evidence: Evidence,
    split: str,
    label: Values,
    corrected: str,
    counts: Sequence[int],
    fewest: int,
) -> dict[str, Estimate]:
    """Return by how much the gap of the ill differs, for every model."""
    models = [model for model in evidence.trained if model.seeds]
    if not models or min(counts) < fewest:
        why = f"{counted(min(counts), 'subject')} in the smaller group, {fewest} are needed"
        return {model.name: Estimate(None, None, None, why) for model in models}
    rows = evidence.inside(split) & ~np.isnan(label)
    gaps = np.array([_gaps(evidence, model, label, corrected)[rows] for model in models])
    design = [np.ones(rows.sum()), label[rows]]
    design += [evidence.targets[rows]] if corrected == "age" else []
    found = intervals.jackknife(
        lambda weights: _coefficients(np.column_stack(design), gaps, weights),
        evidence.persons[rows],
        label[rows].astype(int),
    )
    widening = evidence.widening(split)
    return {
        model.name: _difference(found[place], widening, counts)
        for place, model in enumerate(models)
    }


def _difference(found: Jackknife, widening: float, counts: Sequence[int]) -> Estimate:
    if np.isnan(found.values).any():
        why = f"validation has fewer than {FEWEST_LABELS} healthy scans to learn a line from, or "
        return Estimate(None, None, None, f"{why}age and label cannot be told apart")
    return comparisons.t_test(found.value, widening * found.error(), counts)


def _gaps(evidence: Evidence, model: Model, label: Values, corrected: str) -> Values:
    """Return predicted − true age (scans,), mean over seeds, less what the line of the healthy of
    val says; NaN where that has too few."""
    gaps = model.outputs - evidence.targets
    if corrected == "val":
        for number, gap in enumerate(gaps):
            for _, made in evidence.by_fold(number):
                healthy = made & evidence.inside("val") & (label == 0)
                gap[made] -= _line(evidence.targets[healthy], gap[healthy], evidence.targets[made])
    mean: Values = gaps.mean(axis=0)
    return mean


def _line(ages: Values, gaps: Values, at: Values) -> Values:
    """Return the gap at other ages that a straight line through these says."""
    if len(ages) < FEWEST_LABELS or np.ptp(ages) == 0:
        return np.full(len(at), np.nan)
    slope, intercept = np.polyfit(ages, gaps, 1)
    line: Values = intercept + slope * at
    return line


def _coefficients(design: Values, gaps: Values, weights: Values) -> Values:
    """Return the weighted least squares coefficient of the second column of ``design`` (scans,
    columns) for each row of ``gaps`` (models, scans): (models, samples)."""
    columns = design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    products = (weights @ squares).reshape(-1, columns, columns)
    sums = np.stack([weights @ (column * gaps).T for column in design.T], axis=1)
    found = np.full((len(weights), len(gaps)), np.nan)
    regular = np.linalg.cond(products) < 1e12
    found[regular] = np.linalg.solve(products[regular], sums[regular])[:, 1]
    return found.T
