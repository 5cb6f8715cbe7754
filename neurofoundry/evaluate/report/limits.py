"""The limits of the conclusions, from the numbers themselves: one function a sentence."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import TESTED
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.inputs import Inputs, site_of
from neurofoundry.evaluate.measure.performance import Measured, persons_per_class
from neurofoundry.evaluate.report import narrative, simulated
from neurofoundry.evaluate.report.cohort import lacking
from neurofoundry.evaluate.results import Results

FEW_TO_CHOOSE = 10
"""Validation subjects of a class, below which what they choose is largely chance."""

FEW_TO_TEST = 20
"""Test subjects of a class, below which intervals rely on an approximation."""


def limits(results: Results) -> list[str]:
    """Return the limits that hold for these results, in sentences."""
    estimated = [each for each in results.tasks if _has_interval(each, results.measured)]
    sentences = [_width(each, results.measured) for each in estimated]
    sentences += [
        _cross_validation(results),
        _unfamiliar(results),
        _few_to_choose(estimated),
        _few_to_test(estimated),
        _seeds(results.measured),
        _missing_covariates(results),
        _morphometry_was_taught(results),
    ]
    return [sentence for sentence in sentences if sentence]


def _has_interval(evidence: Evidence, measured: Measured) -> bool:
    rows = narrative.primary(evidence, measured).dropna(subset="low")
    return bool((rows["fraction"] == evidence.fraction).any())


def _width(evidence: Evidence, measured: Measured) -> str:
    metric = evidence.task.primary
    rows = narrative.primary(evidence, measured).dropna(subset="low")
    rows = rows[rows["fraction"] == evidence.fraction]
    width = narrative.number((rows["high"] - rows["low"]).median(), metric)
    fewest = min(persons_per_class(evidence, "test"))
    smaller = f", {fewest} in the smaller group" if evidence.task.classes else ""
    return (
        f"{evidence.name}: {rows['subjects'].iloc[0]} test subjects at familiar sites{smaller}; "
        f"a typical interval is {width}{narrative.unit(evidence)} wide."
    )


def _cross_validation(results: Results) -> str:
    _, count = folds.places(results.inputs.scans)
    if not count:
        return ""
    return (
        f"The numbers are those of a way to make models, {count} of them, one a fold, and not of "
        "any one model. They share training subjects, which the intervals allow for by a rule of "
        "thumb (Nadeau and Bengio, 2003)."
    )


def unfamiliar(inputs: Inputs) -> int:
    """Return how many of the test subjects, who count as of familiar sites, are of none."""
    if folds.count(inputs.scans):
        return 0
    tested = _tested(inputs)
    strange = ~np.isin(site_of(tested), site_of(inputs.train()))
    return int(tested[strange]["person"].nunique())


def _tested(inputs: Inputs) -> pd.DataFrame:
    usable = inputs.scans[inputs.scans["usable"]]
    return usable[usable["split"] == "test"]


def _unfamiliar(results: Results) -> str:
    persons = unfamiliar(results.inputs)
    if not persons:
        return ""
    return (
        f"{persons} of {_tested(results.inputs)['person'].nunique()} test subjects who are counted "
        "as of familiar sites are from sites without training scans."
    )


def _fewest_to_choose(evidence: Evidence) -> int:
    """Return the validation subjects of the smallest class, of a cross-validation in any fold."""
    val = evidence.inside("val")
    counts = [
        evidence.task.persons_per_class(evidence.persons, evidence.targets, val & rows)
        for number in range(len(evidence.made_by))
        for _, rows in evidence.by_fold(number)
    ]
    return min(map(min, counts))


def _few_to_choose(tasks: list[Evidence]) -> str:
    counts = {each.name: _fewest_to_choose(each) for each in tasks}
    few = [f"{name} {count}" for name, count in counts.items() if count < FEW_TO_CHOOSE]
    if not few:
        return ""
    return (
        "Models, thresholds and corrections are chosen on few validation subjects in the "
        f"smaller group ({', '.join(few)}): other subjects might have led to other choices."
    )


def _few_to_test(tasks: list[Evidence]) -> str:
    few = [each.name for each in tasks if min(persons_per_class(each, "test")) < FEW_TO_TEST]
    if not few:
        return ""
    metrics = {name for each in tasks if each.name in few for name in each.task.metric_names}
    held = simulated.coverage(metrics, FEW_TO_TEST)
    shares = f": in simulations of so few they held the truth in {_range(held)} % of cohorts"
    return (
        f"With fewer than {FEW_TO_TEST} subjects in a group ({', '.join(few)}) the 95 % intervals "
        f"rely on an approximation{shares if held else ''}."
    )


def _range(shares: tuple[float, float] | None) -> str:
    return "" if shares is None else f"{math.floor(shares[0])} to {math.ceil(shares[1])}"


def _seeds(measured: Measured) -> str:
    seeds = int(measured.measures["seeds"].max()) if len(measured.measures) else 0
    if not seeds:
        return ""
    if seeds == 1:
        return (
            "Each model was trained once: how much the numbers vary between trainings of the "
            "same model is unknown."
        )
    spread = measured.measures.query("split == 'test' and metric == 'auc'")["seed_sd"].max()
    moved = f", which moves an AUC by up to {spread:.2f} (standard deviation)"
    return (
        f"Models were trained up to {seeds} times and their metrics averaged; the intervals cover "
        f"the choice of subjects, not that of training runs{moved if spread == spread else ''}."
    )


def _morphometry_was_taught(results: Results) -> str:
    taught = [
        each.name
        for each in results.inputs.encoders
        if each.plan.pretraining and each.plan.pretraining.sizes
    ]
    if not taught:
        return ""
    return (
        f"Simple brain volumes are no independent baseline for {', '.join(taught)}: pretraining "
        "taught these sizes to the encoder, without labels."
    )


def _missing_covariates(results: Results) -> str:
    scans = results.inputs.scans
    tested = scans[scans["usable"] & scans["split"].isin(TESTED)]
    missing = lacking(tested)
    if not missing:
        return ""
    return (
        f"{missing} of {len(tested)} test scans lack an age or a sex; the model of age, sex "
        "and site imputes the mean for them."
    )
