"""The terms that a report uses, explained as this run computed them: no term that it lacks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import TESTED
from neurofoundry.errors import counted
from neurofoundry.evaluate.measure import baselines
from neurofoundry.evaluate.report import limits, narrative
from neurofoundry.evaluate.results import Results
from neurofoundry.morphometry import SIZES
from neurofoundry.tasks.conformal import COVERAGE

Terms = Iterator[tuple[str, str]]


def glossary(results: Results) -> list[tuple[str, str]]:
    """Return terms and what they mean; none where nothing was compared."""
    if not results.tasks:
        return []
    return [*_general(results), *_classes(results), *_values(results), *_robustness(results)]


def _metrics(results: Results) -> set[str]:
    """Return the metrics that have a number."""
    table = results.measured.measures
    return set(table["metric"][table["value"].notna()])


def _general(results: Results) -> Terms:
    resampled = (
        f"; that of a calibration error from resampling them ({results.params.bootstraps} times)"
        if "ece" in _metrics(results)
        else ""
    )
    yield (
        "95 % interval",
        "The range of values that fit the data. Its width comes from leaving out each test subject "
        f"in turn (of more than 400 of a class, groups of them){resampled}. A difference counts as "
        "shown only if its whole interval lies on one side of zero.",
    )
    yield _sites(results)
    yield (
        results.params.reference,
        "The reference that every other initialization is compared with.",
    )
    if any(model.is_ensemble for each in results.tasks for model in each.models):
        yield (
            "Ensemble",
            "The models of all seeds and folds of an initialization as one: their predictions are "
            "averaged. The other rows average the metrics of the models one by one.",
        )
    yield from _baselines(results)
    if results.measured.differences["p_holm"].notna().any():
        yield (
            "Adjusted for comparisons",
            "With enough comparisons, some differ by chance. Adjusted p-values (Holm) allow for "
            "the number of comparisons with the reference.",
        )


def _sites(results: Results) -> tuple[str, str]:
    """Say who counts as of a familiar and of a new site."""
    inputs = results.inputs
    familiar = "Familiar: unseen subjects from the sites of the training scans"
    if strange := limits.unfamiliar(inputs):
        familiar += f", and {strange} from sites without any"
    if folds.count(inputs.scans):
        familiar = "Familiar: subjects whom the models that judge them have not seen"
    new = inputs.scans["split"].eq("ood").any()
    kept = " New: sites that were kept out of every choice until this report." if new else ""
    return ("Familiar and new sites" if new else "Familiar sites"), f"{familiar}.{kept}"


def _baselines(results: Results) -> Terms:
    known = {model.name for each in results.tasks for model in each.models if not model.reason}
    titles = [
        narrative.plain(name)
        for each in results.tasks
        for name in baselines.names(each.task)
        if name in known and name != baselines.MORPHOMETRY
    ]
    if titles:
        yield (
            "Without looking at the scan",
            f"What {narrative.listed(list(dict.fromkeys(titles)), 'or')} would reach. A model that "
            "does not beat it has not shown that the image is of use.",
        )
    if baselines.MORPHOMETRY in known:
        yield (
            "Simple brain volumes",
            f"A linear model of {len(SIZES)} sizes measured on the scan: brain, grey and white "
            "matter, fluid, ventricles, asymmetry. A network that does not beat it has not shown "
            "that a network is of use.",
        )


def _classes(results: Results) -> Terms:
    """Explain what is said of classifications: of two classes, of more, or of both."""
    metrics = _metrics(results)
    counts = {len(each.task.classes) for each in results.tasks if each.task.classes}
    two, more = 2 in counts, bool(counts - {2})
    if "auc" in metrics:
        each = "; of more than two classes, the mean of each against the rest" if more else ""
        yield (
            "AUC",
            "How often, of one subject with the condition and one without, the model ranks the "
            f"former higher{each}. 0.5 is chance, 1 is perfect.",
        )
    if "sensitivity" in metrics:
        yield (
            "Sensitivity, specificity",
            "The share of scans of subjects with the condition that are detected, and of scans "
            "without it that are cleared, at one threshold, which was chosen on the validation "
            "subjects and kept. A subject with several scans counts as often.",
        )
    called = ["the threshold"] * two + ["the likeliest class, of more than two classes"] * more
    if "balanced_accuracy" in metrics:
        of_two = ["of sensitivity and specificity"] * two
        of_more = ["of the shares of each class that are recognized"] * more
        yield (
            "Balanced accuracy",
            f"The mean {narrative.listed(of_two + of_more, 'or')}, by {' or '.join(called)}.",
        )
    if "f1" in metrics:
        mean = "; of more than two classes, the mean over them" if more else ""
        yield (
            "F1",
            "The harmonic mean of precision, the share of calls that are right, and of the share "
            f"that is found{mean}.",
        )
    if "average_precision" in metrics:
        yield (
            "Average precision",
            "Precision, averaged over all thresholds. It depends on the prevalence in this cohort.",
        )
    if metrics & {"brier", "ece"}:
        yield (
            "Brier score, calibration error",
            "How far stated risks are from what happened. Calibration error: if the model states "
            "30 %, is it 30 %? With few subjects it is overestimated.",
        )
    yield from _clinic(results)


def _clinic(results: Results) -> Terms:
    """Explain what is said of calls, of acting on risks, and of sets."""
    known = set(results.decisions["measure"][results.decisions["value"].notna()])
    if "likelihood_ratio_positive" in known:
        yield (
            "Likelihood ratio",
            "How many times as often those with the condition get a call as those without. Above "
            "10 or below 0.1 a call changes much, near 1 nothing.",
        )
    if "positive_predictive_value" in known:
        yield (
            "Predictive value",
            "The share of positive calls that are right (of negative ones: negative predictive "
            "value) where as many have the condition as is declared.",
        )
    if len(results.useful):
        yield (
            "Net benefit",
            "Subjects with the condition who are found, less unneeded alarms, weighed by the risk "
            "from which one would act: whoever acts from 20 % takes four unneeded alarms for one "
            "found.",
        )
    if results.sets["value"].notna().any():
        yield (
            "Sets and intervals that hold the truth",
            f"Answers wide enough to be right for {narrative.percent(COVERAGE)} of new people like "
            "the validation subjects: they say of one scan what the model does not know.",
        )


def _values(results: Results) -> Terms:
    metrics = _metrics(results)
    if "mae" in metrics:
        yield "Mean absolute error", "By how much predictions are off, on average."
    if "r2" in metrics:
        yield (
            "R²",
            "The share of the variance between subjects that the model explains; 0 or less: none.",
        )


def _robustness(results: Results) -> Terms:
    if results.repeats["value"].notna().any():
        yield (
            "ICC",
            "Intraclass correlation: the share of the variance that is between subjects and not "
            "between scans of one. 1: both scans give the same.",
        )
    if results.harmonization["difference_value"].notna().any():
        yield (
            "ComBat",
            "Takes off what a site adds to the mean and the spread of features, as learned from "
            "training scans.",
        )


def whom_it_is_for(results: Results) -> str:
    """Say of whom the models have learned and on whom they were tested, in bands of ten years."""
    scans = results.inputs.scans[results.inputs.scans["usable"]]
    used = scans[scans["split"].isin(["train", "val", *TESTED])]
    if used.empty:
        return ""
    words = [_ages(used), _sexes(used)]
    sites = used.groupby(["dataset", "site"]).ngroups
    words.append(f"scanned at {counted(sites, 'site')}")
    persons = used["person"].nunique()
    return (
        f"Trained and tested on {persons} subjects {', '.join(filter(None, words))}: of others "
        "nothing is known."
    )


def _ages(used: pd.DataFrame) -> str:
    ages = used["age"].dropna()
    if ages.empty:
        return "of unknown age"
    low, high = 10 * math.floor(ages.min() / 10), 10 * math.floor(ages.max() / 10) + 9
    unknown = used["person"][used["age"].isna()].nunique()
    return f"aged {low} to {high}" + (f" ({unknown} of unknown age)" if unknown else "")


def _sexes(used: pd.DataFrame) -> str:
    sexes = set(used["sex"].dropna())
    return {frozenset("F"): "all women", frozenset("M"): "all men"}.get(frozenset(sexes), "")
