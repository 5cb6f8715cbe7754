from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.measure.performance import DIFFERENCES, GAPS, MEASURES, Measured
from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.rows import table_of
from neurofoundry.tasks import Classification

TASK = Classification(column="stroke", classes=("no", "yes"))


def evidence() -> Evidence:
    names = ["simclr", "scratch", "baseline-prevalence", "baseline-morphometry"]
    outputs = np.zeros((1, 4, 2))
    models = [Model(name, 1.0, (0,), outputs) for name in names]
    models += [Model("simclr", fraction, (0,), outputs) for fraction in (0.2, 0.5)]
    return Evidence("stroke", TASK, pd.DataFrame(), np.zeros(4), tuple(models))


def measured(
    values: dict[tuple[str, float], float], low: float, high: float, p_holm: float = 0.01
) -> Measured:
    """AUCs of models, and how simclr differs from all others: by ``low`` to ``high``."""
    where = {"task": "stroke", "split": "test", "metric": "auc"}
    measures = [
        {**where, "init": name, "fraction": fraction, "value": value, "low": 0.0, "high": 1.0}
        for (name, fraction), value in values.items()
    ]
    verdict = "better" if low > 0 else "worse" if high < 0 else "none"
    differences = [
        {**where, "init": "simclr", "versus": other, "fraction": fraction}
        | {"versus_fraction": 1.0, "value": (low + high) / 2, "low": low, "high": high}
        | {"verdict": verdict, "p_holm": p_holm}
        for other in ("scratch", "baseline-prevalence", "baseline-morphometry")
        for fraction in (0.2, 0.5, 1.0)
    ]
    return Measured(
        table_of(measures, MEASURES), table_of(differences, DIFFERENCES), table_of([], GAPS)
    )


VALUES = {("simclr", 0.2): 0.7, ("simclr", 0.5): 0.7, ("simclr", 1.0): 0.7, ("scratch", 1.0): 0.9}
VALUES |= {("baseline-prevalence", 1.0): 0.5, ("baseline-morphometry", 1.0): 0.95}


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "text"),
    [
        (
            *(-0.28, -0.08, 0.01),
            "With fewer labels simclr is worse than scratch with all of them (difference with "
            "20%: −0.18 (−0.28 to −0.08) and 50%: −0.18 (−0.28 to −0.08)).",
        ),
        (
            *(-0.28, -0.08, 0.2),
            "With fewer labels simclr may be worse than scratch with all of them (difference with "
            "20%: −0.18 (−0.28 to −0.08) and 50%: −0.18 (−0.28 to −0.08)).",
        ),
        (
            *(0.08, 0.12, 0.01),
            "With 20% of the labels simclr reaches 0.70, better than scratch with all of them 0.90 "
            "(difference +0.10 (+0.08 to +0.12)).",
        ),
        (
            *(0.08, 0.12, 0.2),
            "With 20% of the labels simclr reaches 0.70, perhaps better than scratch with all of "
            "them 0.90 (difference +0.10 (+0.08 to +0.12)).",
        ),
        (
            *(-0.09, 0.13, 1.0),
            "With 20% of the labels simclr reaches 0.70, scratch with all of them 0.90: it is not "
            "shown to be worse (difference +0.02 (−0.09 to +0.13)), but a loss of up to 0.09 is "
            "possible.",
        ),
    ],
)
def test_how_few_labels_suffice_is_said_with_the_difference(
    low: float, high: float, p_holm: float, text: str
) -> None:
    seen = measured(VALUES, low, high, p_holm)
    assert narrative.label_efficiency(evidence(), seen, "simclr", "scratch") == text


@pytest.mark.parametrize(
    ("few", "some", "text"),
    [
        (("worse", 0.01), ("worse", 0.01), "worse with fewer labels"),
        (("worse", 0.01), ("worse", 0.3), "perhaps worse with fewer labels"),
        (
            *(("worse", 0.01), ("none", 1.0)),
            "with 50% not shown to be worse, but a loss of up to 0.30 is possible",
        ),
        (("better", 0.01), ("none", 1.0), "better with 20%"),
        (("better", 0.3), ("worse", 0.01), "perhaps better with 20%"),
    ],
)
def test_a_table_says_of_every_initialization_how_few_labels_suffice(
    few: tuple[str, float], some: tuple[str, float], text: str
) -> None:
    tried = [
        narrative.Fewer(fraction, {}, {"verdict": verdict, "p_holm": p, "low": -0.3, "high": 0.1})
        for fraction, (verdict, p) in ((0.2, few), (0.5, some))
    ]
    assert narrative.how_few_suffice(tried, "auc") == text


def test_in_a_group_the_baselines_that_do_as_well_are_named() -> None:
    baselines = {
        "baseline-prevalence": 0.5,
        "baseline-age-sex-site": None,
        "baseline-morphometry": 0.8,
    }
    volumes = "no better than simple brain volumes (0.80)"
    assert narrative.baselines_ahead(0.81, baselines, "auc") == ""
    assert narrative.baselines_ahead(0.80, baselines, "auc") == volumes
    assert narrative.baselines_ahead(0.3, {"baseline-mean": 0.5}, "mae") == ""
    assert narrative.baselines_ahead(0.6, {"baseline-mean": 0.5}, "mae") == (
        "no better than the same answer for everybody (0.50)"
    )


@pytest.mark.parametrize(
    ("low", "high", "verb"),
    [(0.1, 0.3, "It beats"), (-0.1, 0.1, "not shown to beat"), (-0.3, -0.1, "may be worse than")],
)
def test_a_baseline_that_is_better_is_not_called_unbeaten(
    low: float, high: float, verb: str
) -> None:
    where = {"task": "stroke", "fraction": 1.0, "metric": "auc"}
    sentence = narrative.against_baselines(evidence(), measured(VALUES, low, high), "simclr", where)
    joiner = "or" if "not" in verb else "and"
    assert sentence.endswith(
        f"{verb} the same answer for everybody (0.50) {joiner} simple brain volumes (0.95)."
    )
    assert sum(each in sentence for each in ("beats", "not shown", "worse")) == 1


@pytest.mark.parametrize(
    ("low", "high", "notes"),
    [
        (-0.1, 0.1, [("doubt", "not shown to beat {} or {}")]),
        (0.1, 0.3, []),
        (-0.3, -0.1, [("worse", "perhaps worse than {} and {}")]),
    ],
)
def test_a_row_says_which_baselines_it_does_not_beat_and_which_beat_it(
    low: float, high: float, notes: list[tuple[str, str]]
) -> None:
    baselines = ("the same answer for everybody", "simple brain volumes")
    remarks = narrative.note(evidence(), measured(VALUES, low, high), "simclr", reference="none")
    assert remarks == [(verdict, text.format(*baselines)) for verdict, text in notes]


@pytest.mark.parametrize(
    ("value", "metric", "signed", "text"),
    [
        (0.814, "auc", False, "0.81"),
        (0.814, "auc", True, "+0.81"),
        (-0.004, "auc", True, "+0.00"),
        (-0.061, "auc", True, "−0.06"),
        (5.7, "mae", False, "5.70"),
        (12.34, "mae", False, "12.3"),
        (1234.5, "mae", False, "1234"),
        (0.00123, "mae", False, "0.0012"),
        (None, "auc", False, "–"),
    ],
)
def test_numbers_have_the_digits_that_people_need(value, metric, signed, text):
    assert narrative.number(value, metric, signed=signed) == text


def test_what_so_many_subjects_would_show_follows_from_the_interval(monkeypatch):
    table = measured({**VALUES, ("scratch", 1.0): 0.7}, low=-0.1, high=0.14)
    table.measures["subjects"] = 60
    monkeypatch.setattr(narrative, "on_validation", lambda evidence, model: 0.8)
    conclusion = narrative.conclude(evidence(), table, "scratch")
    # 0.12 is 1.96 standard errors. With three comparisons 80 % power takes 2.39 + 0.84 of them,
    # 0.198, and 60 · (0.198 / 0.05)² is 941.
    assert conclusion.headline == "No difference shown between simclr and scratch"
    assert conclusion.sentences[0].endswith(
        "could be chance. 60 such subjects would show a difference of 0.20 in four of five "
        "studies, adjusted for 3 comparisons; to show one of 0.05 takes about 940."
    )


def test_no_difference_is_promised_that_cannot_be(monkeypatch):
    table = measured(VALUES, low=-0.3, high=0.4)
    table.measures["subjects"] = 16
    monkeypatch.setattr(narrative, "on_validation", lambda evidence, model: 0.8)
    first = narrative.conclude(evidence(), table, "scratch").sentences[0]
    # They would show 0.577, scratch has an AUC of 0.9, and 16 · (0.577 / 0.05)² is 2,131.
    assert first.endswith(
        "16 such subjects would not even show a model without an error (0.10 better) in four of "
        "five studies, adjusted for 3 comparisons; to show a difference of 0.05 takes about 2,100."
    )
