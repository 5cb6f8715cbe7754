"""The conclusions from the numbers, in words that a clinician reads once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from neurofoundry.contracts.models import ENSEMBLE, counterpart, initialization_of
from neurofoundry.evaluate.evidence import Evidence
from neurofoundry.evaluate.measure.baselines import TITLES, names
from neurofoundry.evaluate.measure.harmonization import SITE
from neurofoundry.evaluate.measure.performance import Measured, on_validation
from neurofoundry.evaluate.rows import ENDS, find_row
from neurofoundry.stats.comparisons import detectable
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks.base import BASELINE

SIGNIFICANT = 0.05
CHOSEN = "it did best in the validation subjects"
FIRST = "it is the first declared of the others"
"""Why an initialization is compared with the reference."""


@dataclass(frozen=True)
class Conclusion:
    """The conclusion on a task."""

    verdict: Literal["better", "worse", "none", "nothing"]
    """Of the candidate against the reference; nothing: not estimable, or nothing to compare."""
    sure: bool
    """Whether better or worse still holds once the number of comparisons is allowed for."""
    headline: str
    sentences: tuple[str, ...]
    candidate: tuple[str, str] | None
    """The initialization that was compared with the reference, and why it is this one."""


def plain(name: str) -> str:
    """Return the name of a model in a sentence."""
    return TITLES.get(name, name)


def number(
    value: float | None,
    metric: str,
    *,
    signed: bool = False,
    beside: Mapping[str, Any] | None = None,
) -> str:
    """Format a value: 0.81, or +0.03 for differences; errors in the unit of the label have three
    digits or so, as many decimals as the largest of the estimate that they stand ``beside``."""
    if value is None:
        return "–"
    ends = [
        abs(end)
        for end in map(({} if beside is None else beside).get, ENDS)
        if end is not None and end == end
    ]
    text = f"{abs(value):.{_decimals(max(abs(value), *ends, 0), metric)}f}"
    negative = value < 0 and float(text) != 0
    return ("−" if negative else "+" if signed else "") + text


def _decimals(size: float, metric: str) -> int:
    if metric not in ("mae", "rmse") or 0.1 <= size < 10 or size == 0:
        return 2
    return 0 if size >= 100 else 1 if size >= 10 else 1 - math.floor(math.log10(size))


def interval(row: Mapping[str, Any], metric: str, *, signed: bool = False) -> str:
    """Format an interval: 0.66–0.93, or −0.06 to +0.12."""
    if row["low"] is None:
        return "no interval"
    low, high = (number(row[end], metric, signed=signed, beside=row) for end in ("low", "high"))
    return f"{low} to {high}" if signed or row["low"] < 0 else f"{low}–{high}"


def with_interval(row: Mapping[str, Any], metric: str, *, signed: bool = False) -> str:
    """Format a value with its interval: 0.81 (0.66–0.93)."""
    value = number(row["value"], metric, signed=signed, beside=row)
    return f"{value} ({interval(row, metric, signed=signed)})"


def percent(share: float) -> str:
    """Format a share: 12 %, or 0.4 %."""
    decimals = 0 if round(100 * share) in range(1, 100) or share in (0, 1) else 1
    return f"{100 * share:.{decimals}f} %"


def ratio(row: Mapping[str, Any]) -> tuple[str, str]:
    """Format a likelihood ratio or a share, and its interval: 4.2, 0.61–12."""
    value, low, high = ("–" if row[end] is None else _digits(row[end]) for end in ENDS)
    return value, f"{low}–{high}"


def _digits(value: float) -> str:
    """Return a number of 0 or more, with two decimals below 1 and none from 10."""
    decimals = 0 if value >= 9.95 else 1 if value > 1.005 else 2
    return f"{value:.{decimals}f}"


def unit(evidence: Evidence) -> str:
    """Return the unit of the errors of a regression, where it is known."""
    return " years" if evidence.task.column == "age" else ""


def explained_unit(evidence: Evidence) -> str:
    """Return what the maps of a task distribute over the brain, with its unit."""
    return evidence.task.explained_unit(unit(evidence))


def beats_a_constant(evidence: Evidence, measured: Measured, init: str) -> bool:
    """Return whether a model is shown to beat the same answer for everybody at familiar sites."""
    row = find_row(
        measured.differences,
        task=evidence.name,
        init=init,
        versus=names(evidence.task)[0],
        fraction=evidence.fraction,
        split="test",
        metric=evidence.task.primary,
    )
    return row is not None and row["verdict"] == "better"


def primary(evidence: Evidence, measured: Measured) -> pd.DataFrame:
    """Return the rows of MEASURES with the primary metric of a task, of its initializations at
    familiar sites."""
    table = measured.measures
    return table[
        (table["task"] == evidence.name)
        & (table["metric"] == evidence.task.primary)
        & (table["split"] == "test")
        & ~table["init"].str.startswith(BASELINE)
    ]


def candidate(evidence: Evidence, measured: Measured, reference: str) -> tuple[str, str] | None:
    """Return the initialization that the headline compares with the reference, and why this one.

    It is the best on validation; never the best on test, which would flatter it. In a
    cross-validation, where those who validate are tested too, it is the first declared.
    """
    metric = evidence.task.primary
    where = {"task": evidence.name, "fraction": evidence.fraction, "metric": metric}
    scores = {}
    for model in evidence.models:
        row = find_row(measured.measures, init=model.name, split="test", **where)
        single = not model.is_baseline and not model.is_ensemble
        if single and model.name != reference and row and row["value"] is not None:
            scores[model.name] = on_validation(evidence, model)
    if not scores:
        return None
    if len(scores) == 1:
        return next(iter(scores)), "it is the only other one"
    if evidence.fold_of is not None:
        because = f"{FIRST}; in a cross-validation, those who validate are tested too"
        return next(iter(scores)), because
    if any(math.isnan(score) for score in scores.values()):
        return next(iter(scores)), f"{FIRST}, and validation cannot tell them apart"
    best = max if METRICS[metric].higher_is_better else min
    return best(scores, key=lambda name: scores[name]), CHOSEN


def conclude(evidence: Evidence, measured: Measured, reference: str) -> Conclusion:
    """Return the best-supported statement about a task."""
    metric = evidence.task.primary
    where = {"task": evidence.name, "fraction": evidence.fraction, "metric": metric}
    reference_row = find_row(measured.measures, init=reference, split="test", **where)
    chosen = candidate(evidence, measured, reference)
    name = chosen[0] if chosen else reference
    row = find_row(measured.measures, init=name, split="test", **where)
    if row is None or row["value"] is None:
        reason = str(row["reason"]) if row else "no model was made for it"
        return Conclusion("nothing", False, "Not estimable", (_sentence(reason),), None)

    title = "an AUC" if metric == "auc" else "a mean absolute error"
    reached = f"In {row['subjects']} unseen subjects {name} reached {title} of "
    reached += f"{number(row['value'], metric, beside=row)}{unit(evidence)} "
    reached += f"({interval(row, metric)})"
    verdict: Literal["better", "worse", "none", "nothing"] = "nothing"
    headline, sentences = f"{name}, with nothing to compare", [f"{reached}."]
    versus = find_row(measured.differences, init=name, versus=reference, split="test", **where)
    sure = False
    if (
        versus is not None
        and reference_row is not None
        and versus["verdict"] in ("better", "worse", "none")
    ):
        verdict = versus["verdict"]
        sure = verdict != "none" and versus["p_holm"] < SIGNIFICANT
        family = (
            "split == 'test' and p_holm == p_holm and fraction == versus_fraction "
            f"and not init.str.endswith('{ENSEMBLE}')"
        )
        compared = len(measured.differences.query(family))
        headline, because = _compared(name, reference, versus, reference_row, compared)
        sentences = [f"{reached}, {reference} {with_interval(reference_row, metric)}. {because}"]
    sentences.append(against_baselines(evidence, measured, name, where))
    if chosen:
        sentences.append(label_efficiency(evidence, measured, name, reference))
    sentences.append(_elsewhere(measured, name, reference if chosen else None, where, metric))
    return Conclusion(verdict, sure, headline, tuple(text for text in sentences if text), chosen)


def _compared(
    name: str,
    reference: str,
    versus: Mapping[str, Any],
    reference_row: Mapping[str, Any],
    compared: int,
) -> tuple[str, str]:
    metric = str(reference_row["metric"])
    adjusted = f", adjusted for {compared} comparisons" if compared > 1 else ""
    difference = f"The difference, {with_interval(versus, metric, signed=True)},"
    if versus["verdict"] == "none":
        return (
            f"No difference shown between {name} and {reference}",
            f"{difference} could be chance. {_power(versus, reference_row, compared, adjusted)}",
        )
    if versus["p_holm"] < SIGNIFICANT:
        return (
            f"{name} is {versus['verdict']} than {reference}",
            f"{difference} is unlikely to be chance ({p_value(versus['p_holm'])}{adjusted}).",
        )
    return (
        f"{name} may be {versus['verdict']} than {reference}",
        f"{difference} would be unlikely to be chance if it stood alone, but it is one of "
        f"{compared} comparisons (adjusted {p_value(versus['p_holm'])}).",
    )


def _power(
    versus: Mapping[str, Any], reference_row: Mapping[str, Any], compared: int, adjusted: str
) -> str:
    """Return which difference so many subjects would show, and how many a smaller one would take:
    0.05 of a share, a tenth of the error of the reference; no more than there is to gain."""
    metric, subjects = str(reference_row["metric"]), int(reference_row["subjects"])
    value, share = float(reference_row["value"]), METRICS[metric].scale.share
    seen = detectable((versus["high"] - versus["low"]) / 2, compared)
    wanted, most = (0.05, 1 - value) if share else (0.1 * abs(value), abs(value))
    studies = f"in four of five studies{adjusted}"
    if seen < most:
        shown, one = f"show a difference of {number(seen, metric)}", "one"
    else:
        best = f"({number(most, metric)} better)"
        shown, one = f"not even show a model without an error {best}", "a difference"
    text = f"{subjects} such subjects would {shown} {studies}"
    if not 0 < wanted < min(seen, most):
        return f"{text}."
    needed = float(f"{subjects * (seen / wanted) ** 2:.2g}")
    return f"{text}; to show {one} of {number(wanted, metric)} takes about {needed:,.0f}."


def against_baselines(
    evidence: Evidence, measured: Measured, name: str, where: Mapping[str, object]
) -> str:
    beaten: list[str] = []
    unbeaten: list[str] = []
    better: list[str] = []
    for baseline in _baselines(evidence):
        versus = find_row(measured.differences, init=name, versus=baseline, split="test", **where)
        value = find_row(
            measured.measures, init=baseline, split="test", **{**where, "fraction": 1.0}
        )
        if versus is None or value is None or versus["verdict"] is None:
            continue
        text = f"{plain(baseline)} ({number(value['value'], str(where['metric']))})"
        {"better": beaten, "none": unbeaten, "worse": better}[versus["verdict"]].append(text)
    clauses = []
    if beaten:
        clauses.append(f"It beats {listed(beaten, 'and')}")
    if unbeaten:
        subject = "but it" if beaten else "It"
        clauses.append(f"{subject} is not shown to beat {listed(unbeaten, 'or')}")
    if better:
        subject = "and" if unbeaten else "but it" if beaten else "It"
        clauses.append(f"{subject} may be worse than {listed(better, 'and')}")
    return f"{', '.join(clauses)}." if clauses else ""


@dataclass(frozen=True)
class Fewer:
    """What an initialization reaches with a share of the labels, against the reference with all."""

    fraction: float
    value: Mapping[str, Any]
    """Its row of MEASURES …"""
    versus: Mapping[str, Any]
    """… and of DIFFERENCES, with a verdict."""

    @property
    def sure(self) -> bool:
        """Whether better or worse still holds once the number of comparisons is allowed for."""
        return bool(self.versus["p_holm"] < SIGNIFICANT)


def with_fewer_labels(
    evidence: Evidence, measured: Measured, name: str, reference: str
) -> list[Fewer]:
    """Return what an initialization reaches at familiar sites, by rising share of the labels; what
    cannot be compared is left out."""
    where = {"task": evidence.name, "split": "test", "metric": evidence.task.primary}
    tried = []
    for fraction in sorted({m.fraction for m in evidence.models if m.name == name}):
        value = find_row(measured.measures, init=name, fraction=fraction, **where)
        versus = find_row(
            measured.differences,
            init=name,
            versus=reference,
            fraction=fraction,
            versus_fraction=evidence.fraction,
            **where,
        )
        if fraction < evidence.fraction and value and versus and versus["verdict"]:
            tried.append(Fewer(fraction, value, versus))
    return tried


def label_efficiency(evidence: Evidence, measured: Measured, name: str, reference: str) -> str:
    """Return a sentence on how few labels suffice for not being shown to be worse than the
    reference with all of them.

    Not being shown to be worse is no proof of being as good: the sentence states the loss that is
    still possible. Empty where only one fraction was tried.
    """
    metric = evidence.task.primary
    where = {"task": evidence.name, "split": "test", "metric": metric}
    reference_row = find_row(measured.measures, init=reference, fraction=evidence.fraction, **where)
    tried = with_fewer_labels(evidence, measured, name, reference)
    if not tried or reference_row is None:
        return ""
    enough = next((each for each in tried if each.versus["verdict"] != "worse"), None)
    if enough is None:
        worse = [
            f"{each.fraction:.0%}: {with_interval(each.versus, metric, signed=True)}"
            for each in tried
        ]
        sure = "is" if all(each.sure for each in tried) else "may be"
        return (
            f"With fewer labels {name} {sure} worse than {reference} with {_all(evidence)} "
            f"(difference with {listed(worse, 'and')})."
        )
    reached = f"With {enough.fraction:.0%} of the labels {name} reaches "
    reached += number(enough.value["value"], metric)
    against = f"{reference} with {_all(evidence)} {number(reference_row['value'], metric)}"
    difference = with_interval(enough.versus, metric, signed=True)
    if enough.versus["verdict"] == "better":
        sure = "better" if enough.sure else "perhaps better"
        return f"{reached}, {sure} than {against} (difference {difference})."
    return (
        f"{reached}, {against}: it is not shown to be worse (difference {difference}), but "
        f"{_possible_loss(enough.versus, metric)}."
    )


def how_few_suffice(tried: Sequence[Fewer], metric: str) -> str:
    """Return the same as `label_efficiency` in a few words, for a table."""
    enough = next((each for each in tried if each.versus["verdict"] != "worse"), None)
    if enough is None:
        sure = "" if all(each.sure for each in tried) else "perhaps "
        return f"{sure}worse with fewer labels"
    share = f"{enough.fraction:.0%}"
    if enough.versus["verdict"] == "better":
        return f"{'' if enough.sure else 'perhaps '}better with {share}"
    return f"with {share} not shown to be worse, but {_possible_loss(enough.versus, metric)}"


def _possible_loss(versus: Mapping[str, Any], metric: str) -> str:
    loss = versus["low"] if METRICS[metric].higher_is_better else versus["high"]
    return f"a loss of up to {number(abs(loss), metric)} is possible"


def _all(evidence: Evidence) -> str:
    return "all of them" if evidence.fraction == 1 else f"{evidence.fraction:.0%}"


def _elsewhere(
    measured: Measured, name: str, reference: str | None, where: Mapping[str, object], metric: str
) -> str:
    row = find_row(measured.measures, init=name, split="ood", **where)
    if row is None:
        return ""
    if row["value"] is None:
        return f"At new sites nothing can be measured: {row['reason']}."
    text = f"In {row['subjects']} subjects of new sites it reached {with_interval(row, metric)}"
    gap = find_row(measured.gaps, init=name, **where)
    if gap is not None and gap["low"] is not None:
        change = with_interval(gap, metric, signed=True)
        worse = (gap["value"] < 0) == METRICS[metric].higher_is_better
        if gap["low"] <= 0 <= gap["high"]:
            text += f"; the change of {change} could be chance"
        else:
            text += f", which is {'worse' if worse else 'better'} than at familiar sites: {change}"
    versus = find_row(measured.differences, init=name, versus=reference, split="ood", **where)
    if versus is None or versus["verdict"] is None:
        return f"{text}."
    against = (
        f"(difference {number(versus['value'], metric, signed=True, beside=versus)}, "
        f"{interval(versus, metric, signed=True)})"
    )
    if versus["verdict"] == "none":
        return f"{text}. There it is not shown to differ from {reference} {against}."
    sure = "is" if versus["p_holm"] < SIGNIFICANT else "may be"
    return f"{text}. There it {sure} {versus['verdict']} than {reference} {against}."


def note(
    evidence: Evidence, measured: Measured, name: str, reference: str, split: str = "test"
) -> list[tuple[str, str]]:
    """Return the remarks beside the numbers of a row: (verdict, words)."""
    where = {
        "task": evidence.name,
        "fraction": evidence.fraction,
        "metric": evidence.task.primary,
        "split": split,
    }
    notes = []
    other = counterpart(name, reference)
    versus = find_row(measured.differences, init=name, versus=other, **where)
    if versus is not None and versus["verdict"] in ("better", "worse"):
        sure = versus["p_holm"] < SIGNIFICANT
        words = f"{'' if sure else 'perhaps '}{versus['verdict']} than {other}"
        notes.append((versus["verdict"], words))
    notes += ensembling(measured, name, where)
    verdicts: dict[str, list[str]] = {"worse": [], "none": []}
    for baseline in _baselines(evidence):
        versus = find_row(measured.differences, init=name, versus=baseline, **where)
        if versus is not None and versus["verdict"] in verdicts:
            verdicts[versus["verdict"]].append(plain(baseline))
    if verdicts["worse"]:
        notes.append(("worse", f"perhaps worse than {listed(verdicts['worse'], 'and')}"))
    if verdicts["none"]:
        notes.append(("doubt", f"not shown to beat {listed(verdicts['none'], 'or')}"))
    return notes


def ensembling(measured: Measured, name: str, where: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the remark on what averaging has changed: (verdict, words); none of a single model."""
    single = initialization_of(name)
    versus = find_row(measured.differences, init=name, versus=single, **where)
    if single == name or versus is None or not versus["verdict"]:
        return []
    if versus["value"] == 0:
        return [("none", f"for these subjects the same as {single}")]
    change = with_interval(versus, str(where["metric"]), signed=True)
    return [(versus["verdict"], f"{change} against {single}, its models one by one")]


def usefulness(row: Mapping[str, Any]) -> str:
    """Return for which thresholds a row of USEFUL shows a risk to be of use."""
    if row["from"] is None:
        return "not shown to be of use at any threshold"
    if row["from"] == row["to"]:
        return f"shown to be of use at {percent(row['from'])}"
    return f"shown to be of use from {percent(row['from'])} to {percent(row['to'])}"


def gap_between_groups(row: Mapping[str, Any]) -> str:
    """Return what a row of FAIRNESS shows."""
    if row["low"] > 0:
        return "differ"
    if row["observed"] <= row["by_chance"]:
        return "no more than chance gives"
    return "could be chance"


def changed(row: Mapping[str, Any], state: str) -> str:
    """Format one of the three values of a row of HARMONIZATION."""
    cells = {end: row[f"{state}_{end}"] for end in ENDS}
    return with_interval(cells, row["metric"], signed=state == "difference")


def changed_by_harmonization(row: Mapping[str, Any]) -> str:
    """Return what a row of HARMONIZATION shows."""
    low, high = row["difference_low"], row["difference_high"]
    if low is None:
        return str(row["reason"] or "")
    if low <= 0 <= high:
        return "no change shown"
    more = row["difference_value"] > 0
    if row["question"] == SITE:
        return f"the site is read {'better' if more else 'worse'}"
    return "better" if more == METRICS[row["metric"]].higher_is_better else "worse"


def baselines_ahead(value: float, baselines: Mapping[str, float | None], metric: str) -> str:
    """Return which baselines do as well as a model, or better, in a group; empty where none does.

    A remark on the numbers as they are: chance is not considered.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    ahead = [
        f"{plain(name)} ({number(baseline, metric)})"
        for name, baseline in baselines.items()
        if baseline is not None and sign * baseline >= sign * value
    ]
    return f"no better than {listed(ahead, 'and')}" if ahead else ""


def p_value(p: float) -> str:
    """Format a p-value: p = 0.03, or p < 0.001, as smaller ones depend on tails whose shape is
    unknown."""
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def _baselines(evidence: Evidence) -> list[str]:
    return [model.name for model in evidence.models if model.is_baseline]


def listed(items: Sequence[str], joiner: str) -> str:
    """Return items as words: a, b and c."""
    if len(items) < 3:
        return f" {joiner} ".join(items)
    return f"{', '.join(items[:-1])} {joiner} {items[-1]}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
