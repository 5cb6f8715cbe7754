"""A term is explained where the report uses it, and as this run has computed it; each with a table
that makes it true, and one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from neurofoundry.evaluate.report.glossary import glossary, whom_it_is_for
from neurofoundry.evaluate.results import Results
from neurofoundry.tasks import Classification
from tests.evaluate.report.test_sentences import Plant, of_measures, of_scans

THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))


def no_such(metric: str) -> Plant:
    return of_measures(f"metric == '{metric}'", value=None, low=None, high=None)


def none_of(name: str, column: str) -> Plant:
    return lambda results: replace(
        results, **{name: getattr(results, name).assign(**{column: float("nan")})}
    )


def some_of(name: str, **values: object) -> Plant:
    return lambda results: replace(results, **{name: pd.DataFrame([values])})


def no_differences(results: Results) -> Results:
    differences = results.measured.differences.assign(p_holm=float("nan"))
    return replace(results, measured=replace(results.measured, differences=differences))


@pytest.mark.parametrize(
    ("term", "with_it", "without"),
    [
        ("Sensitivity, specificity", of_scans(lambda s: s), no_such("sensitivity")),
        ("F1", of_scans(lambda s: s), no_such("f1")),
        ("R²", of_scans(lambda s: s), no_such("r2")),
        ("Mean absolute error", of_scans(lambda s: s), no_such("mae")),
        (
            "Predictive value",
            some_of("decisions", measure="positive_predictive_value", value=0.3),
            none_of("decisions", "value"),
        ),
        (
            "Likelihood ratio",
            some_of("decisions", measure="likelihood_ratio_positive", value=3.0),
            none_of("decisions", "value"),
        ),
        (
            "Net benefit",
            some_of("useful", task="stroke"),
            lambda results: replace(results, useful=results.useful.iloc[:0]),
        ),
        (
            "Sets and intervals that hold the truth",
            some_of("sets", value=0.9),
            none_of("sets", "value"),
        ),
        ("ICC", some_of("repeats", value=0.9), none_of("repeats", "value")),
        (
            "ComBat",
            some_of("harmonization", difference_value=-0.1),
            none_of("harmonization", "difference_value"),
        ),
        ("Adjusted for comparisons", of_scans(lambda s: s), no_differences),
    ],
)
def test_a_term_is_explained_where_it_is_used(
    results: Results, term: str, with_it: Plant, without: Plant
) -> None:
    assert term in dict(glossary(with_it(results)))
    assert term not in dict(glossary(without(results)))


def with_task(number: int, **values: object) -> Callable[[Results], Results]:
    return lambda results: replace(
        results,
        tasks=tuple(
            replace(each, **values) if place == number else each
            for place, each in enumerate(results.tasks)
        ),
    )


def test_of_more_than_two_classes_it_says_how_they_are_summed_up(results: Results) -> None:
    two, more = (dict(glossary(each)) for each in (results, with_task(0, task=THREE)(results)))
    assert "each against the rest" in more["AUC"]
    assert "each against the rest" not in two["AUC"]
    assert two["Balanced accuracy"].endswith("of sensitivity and specificity, by the threshold.")
    assert "or the likeliest class, of more than two classes" in more["Balanced accuracy"]


def test_familiar_and_new_are_those_of_this_cohort(results: Results) -> None:
    def said(change: Callable[[pd.DataFrame], pd.DataFrame]) -> str:
        terms = dict(glossary(of_scans(change)(results)))
        return next(f"{term}. {text}" for term, text in terms.items() if term.startswith("Fam"))

    def no_birch(scans: pd.DataFrame) -> pd.DataFrame:
        moved = (scans["split"] == "train") & (scans["site"] == "birch")
        return scans.assign(split=scans["split"].mask(moved, "pretrain"))

    assert "from the sites of the training scans. New:" in said(lambda scans: scans)
    assert "from sites without any" in said(no_birch)
    none_new = said(lambda scans: scans[scans["split"] != "ood"])
    assert none_new.startswith("Familiar sites.")
    assert "New" not in none_new
    folds = said(lambda scans: scans.assign(fold=np.resize(["1/3", "2/3", "3/3"], len(scans))))
    assert "whom the models that judge them have not seen" in folds


def test_baselines_are_those_that_were_made(results: Results) -> None:
    text = dict(glossary(results))["Without looking at the scan"]
    assert "the same answer for everybody, age, sex and site alone" in text
    single = replace(results.tasks[0], models=results.tasks[0].trained)
    without = dict(glossary(replace(results, tasks=(single,))))
    assert "Without looking at the scan" not in without
    assert "Simple brain volumes" not in without


def test_resampling_is_named_where_it_was_done(results: Results) -> None:
    assert "resampling them" in dict(glossary(results))["95 % interval"]
    assert "resampling" not in dict(glossary(no_such("ece")(results)))["95 % interval"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"age": 67.0, "sex": "F"}, "aged 60 to 69, all women, scanned at 4 sites"),
        ({"age": 67.0, "sex": "M", "site": "x", "dataset": "a"}, "all men, scanned at 1 site:"),
        ({"age": float("nan"), "sex": None}, "subjects of unknown age, scanned at"),
    ],
)
def test_whom_it_is_for_are_those_it_was_tried_on(
    results: Results, values: dict[str, object], words: str
) -> None:
    assert words in whom_it_is_for(of_scans(lambda scans: scans.assign(**values))(results))


def test_whom_it_is_for_counts_those_of_unknown_age(results: Results) -> None:
    scans = results.inputs.scans
    person = scans[scans["usable"] & (scans["split"] == "test")]["person"].iloc[0]
    hidden = of_scans(lambda s: s.assign(age=s["age"].mask(s["person"] == person)))
    assert "(1 of unknown age)" in whom_it_is_for(hidden(results))
    assert "unknown" not in whom_it_is_for(results)
    assert whom_it_is_for(of_scans(lambda s: s.assign(split="pretrain"))(results)) == ""


def test_where_nothing_was_compared_there_is_none(results: Results) -> None:
    assert glossary(replace(results, tasks=())) == []
