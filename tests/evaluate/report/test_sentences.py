"""Every fixed sentence is traced to the number that makes it true: a table is planted so that it is
true, another so that it is false, and the sentence must change."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.encoder import PretrainedOn
from neurofoundry.evaluate.inputs import Inputs
from neurofoundry.evaluate.report import build, figures, separation
from neurofoundry.evaluate.report.figures import Figures
from neurofoundry.evaluate.results import Results
from tests.evaluate.conftest import run, scans_table, write_inputs

Plant = Callable[[Results], Results]


@pytest.fixture(scope="module")
def drawn(results: Results) -> Figures:
    return figures.draw(results)


def pages(results: Results, drawn: Figures) -> dict[str, str]:
    """The words of each page, without markup, on one line."""
    texts = build.pages(results, drawn, mapped=False)
    return {
        name: " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.DOTALL).split())
        for name, text in texts.items()
    }


def changed(name: str, where: str, **values: object) -> Plant:
    """Plant values in the rows of a table."""

    def plant(results: Results) -> Results:
        table = getattr(results, name).copy()
        rows = table.query(where).index
        assert len(rows)
        for column, value in values.items():
            table[column] = table[column].astype(object)
            table.loc[rows, column] = value
        return replace(results, **{name: table})

    return plant


def of_params(**values: object) -> Plant:
    return lambda results: replace(results, params=results.params.model_copy(update=values))


def of_scans(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Plant:
    return lambda results: replace(
        results, inputs=replace(results.inputs, scans=change(results.inputs.scans.copy()))
    )


def of_measures(where: str, **values: object) -> Plant:
    def plant(results: Results) -> Results:
        planted = changed("measures", where, **values)(results.measured)
        return replace(results, measured=planted)

    return plant


def fairness(low: float, high: float, observed: float = 0.2) -> Plant:
    row = {"task": "stroke", "init": "scratch", "split": "test", "variable": "sex"}
    row |= {"metric": "auc", "groups": 2, "lowest": "F", "highest": "M", "by_chance": 0.1}
    row |= {"observed": observed, "value": 0.17, "low": low, "high": high}

    def plant(results: Results) -> Results:
        names = [model.name for model in results.tasks[1].trained]
        table = pd.DataFrame([{**row, "init": name} for name in names])
        return replace(results, fairness=table)

    return plant


def harmonization(low: float, high: float, question: str = "site", known: float = 1) -> Plant:
    row = {"encoder": "simclr", "question": question, "split": "test", "known": known}
    row |= {"metric": "balanced_accuracy" if question == "site" else "auc", "reason": None}
    for state, middle in {"as_is": 0.8, "harmonized": 0.5}.items():
        row |= {f"{state}_value": middle, f"{state}_low": middle, f"{state}_high": middle}
    row |= {"difference_value": (low + high) / 2, "difference_low": low, "difference_high": high}
    table = pd.DataFrame([row])
    return lambda results: replace(results, harmonization=table)


def drop_train_site(scans: pd.DataFrame) -> pd.DataFrame:
    moved = (scans["split"] == "train") & (scans["site"] == "birch")
    return scans.assign(split=scans["split"].mask(moved, "pretrain"))


TEST = "split == 'test'"
STROKE = f"task == 'stroke' and {TEST}"
CASES: list[tuple[str, str, Plant, str, Plant, str]] = [
    (
        *("a threshold is of use", "report.html"),
        changed("useful", STROKE, **{"from": 0.12, "to": 0.45}),
        "simclr: shown to be of use from 12 % to 45 %.",
        changed("useful", STROKE, **{"from": None, "to": None}),
        "simclr: not shown to be of use at any threshold.",
    ),
    (
        *("the prevalence of net benefit", "report.html"),
        changed("useful", STROKE, prevalence=0.07, declared=True),
        "at a prevalence of 7 %, as declared",
        changed("useful", STROKE, prevalence=0.31, declared=False),
        "at a prevalence of 31 %, that of the test subjects",
    ),
    (
        *("predictive values", "report.html"),
        of_params(prevalence={"stroke": 0.04}),
        "Predictive values hold where 4 % have stroke yes, as params.yaml declares.",
        of_params(prevalence={}),
        "No prevalence is declared ( evaluate.prevalence ), so that no predictive value",
    ),
    (
        *("clinical prevalence among the limits", "report.html"),
        of_params(prevalence={"stroke": 0.04}),
        "have stroke yes; 4 % are declared for those whom the model is meant for",
        of_params(prevalence={}),
        "have stroke yes, as the study has them; for those whom the model is meant for none is",
    ),
    (
        *("prevalence in the checklist", "checklist.md"),
        of_params(prevalence={"stroke": 0.04}),
        "have yes at new sites, 4 % are declared for use",
        of_params(prevalence={}),
        "have yes at new sites. sex",
    ),
    (
        *("groups differ", "report.html"),
        fairness(0.05, 0.3),
        "0.05–0.30 differ",
        fairness(0.0, 0.3),
        "0.00–0.30 could be chance",
    ),
    (
        *("groups differ, in the checklist", "checklist.md"),
        fairness(0.05, 0.3),
        "(`tables/fairness.tsv`): stroke differs by sex.",
        fairness(0.0, 0.3, observed=0.05),
        "(`tables/fairness.tsv`). **Left to the author",
    ),
    (
        *("harmonization hides the site", "report.html"),
        harmonization(-0.4, -0.2),
        "the site is read worse",
        harmonization(-0.1, 0.1),
        "no change shown",
    ),
    (
        *("harmonization costs a task", "report.html"),
        harmonization(-0.4, -0.2, "stroke"),
        "−0.30 (−0.40 to −0.20) worse",
        harmonization(0.2, 0.4, "stroke"),
        "+0.30 (+0.20 to +0.40) better",
    ),
    (
        *("scans of sites that harmonization does not know", "report.html"),
        harmonization(0.2, 0.4, "stroke", known=0.6),
        "from sites it was fitted to. The others are left as they are; what changes for them",
        harmonization(0.2, 0.4, "stroke"),
        "from sites it was fitted to. Encoder",
    ),
    (
        *("groups hidden, in the checklist", "checklist.md"),
        changed("subgroups", "task == 'stroke'", value=None, low=None, high=None),
        "; stroke: 0 groups with numbers, ",
        changed("subgroups", "task == 'stroke'", value=0.7, low=0.6, high=0.8, subjects=30),
        " groups with numbers, 0 hidden; sex: ",
    ),
    (
        *("groups hidden, in the report", "report.html"),
        changed("subgroups", "task == 'stroke'", value=None, low=None, high=None),
        " groups have fewer than 20 subjects, or too few of a class.",
        changed("subgroups", "task == 'stroke'", value=0.7, low=0.6, high=0.8, subjects=30),
        "Intervals are not adjusted for the number of groups",
    ),
    (
        *("familiar sites are those of training", "model_card.md"),
        of_scans(drop_train_site),
        "test subjects who are counted as of familiar sites are from sites without training scans",
        of_scans(lambda scans: scans),
        "## Limits - alzheimers: ",
    ),
    (
        *("acquisition", "checklist.md"),
        of_scans(lambda scans: scans.assign(scanner="Prisma", field_strength=3.0)),
        "clinic, alder: Prisma, 3 T; clinic, birch: Prisma, 3 T;",
        of_scans(lambda scans: scans.assign(scanner=None, field_strength=np.nan)),
        "clinic, alder: not recorded (scanner or field strength of",
    ),
    (
        *("kept by hand", "methods.md"),
        of_scans(lambda scans: scans.assign(qc_decision=["keep"] * 3 + [None] * (len(scans) - 3))),
        "took no part in what follows, but for 3 that were kept by hand.",
        of_scans(lambda scans: scans.assign(qc_decision=None)),
        "took no part in what follows. **Splits.**",
    ),
    (
        *("a task without numbers, in the title", "report.html"),
        of_measures(STROKE, value=None, low=None, high=None, reason="too few"),
        "of 3 tasks (1 more cannot be estimated)",
        lambda results: results,
        "of 4 tasks ",
    ),
    (
        *("one training run", "model_card.md"),
        of_measures("split == 'test'", seeds=1),
        "Each model was trained once",
        of_measures("split == 'test'", seeds=3, seed_sd=0.04),
        "Models were trained up to 3 times and their metrics averaged; the intervals cover the "
        "choice of subjects, not that of training runs, which moves an AUC by up to 0.04",
    ),
    (
        *("age or sex is lacking", "checklist.md"),
        of_scans(lambda scans: scans.assign(age=scans["age"].where(scans["split"] != "test"))),
        "Age or sex is missing for",
        of_scans(lambda scans: scans),
        "Age or sex is missing for 0 of",
    ),
    (
        *("synthetic", "model_card.md"),
        of_scans(lambda scans: scans.assign(dataset="phantom")),
        "The cohort is synthetic",
        of_scans(lambda scans: scans),
        "## Intended use",
    ),
    (
        *("limits of sets", "report.html"),
        changed("sets", "task == 'stroke'", calibrated_on=40, true_low=0.8, true_high=0.97),
        "with 40 validation subjects in the smaller class, the true share of one choice of them is "
        "anything from 80 % to 97 %",
        changed("sets", "task == 'stroke'", value=None, low=None, reason="4 validation subjects"),
        "4 validation subjects",
    ),
    (
        *("what the brain-age model has learned from", "report.html"),
        changed("brain_age", "label == 'stroke'", learned_from_ill=0),
        "0 subjects with yes",
        changed("brain_age", "label == 'stroke'", learned_from_ill=1),
        "1 subject with yes",
    ),
]


@pytest.mark.parametrize(
    ("page", "plant", "sentence", "other", "instead"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_a_sentence_says_what_its_table_says(
    results: Results,
    drawn: Figures,
    page: str,
    plant: Plant,
    sentence: str,
    other: Plant,
    instead: str,
) -> None:
    first, second = (pages(each(results), drawn)[page] for each in (plant, other))
    assert sentence in first
    assert instead in second
    assert sentence not in second or sentence in instead


class TestSeparation:
    """What is said of leaks between splits is what was looked at."""

    def said(self, inputs: Inputs, folder: Path) -> str:
        return " ".join(separation.describe(inputs, folder))

    def with_sketches(self, inputs: Inputs) -> Inputs:
        return replace(inputs, scans=inputs.scans.assign(sketch="AA"))

    def pair(self, inputs: Inputs, folder: Path, splits: tuple[str, str], r: float) -> None:
        usable = inputs.scans[inputs.scans["usable"]]
        one, other = (usable[usable["split"] == split]["scan_id"].iloc[-1] for split in splits)
        table = pd.DataFrame({"scan_id": [one], "other": [other], "correlation": [r]})
        table.to_csv(folder / "similar.tsv", sep="\t", index=False)

    def test_brains_that_were_not_compared_are_said_so(self, results, tmp_path):
        text = self.said(results.inputs, tmp_path)
        assert "The brains themselves were not compared" in text
        assert "would not be noticed" in text

    @pytest.mark.parametrize(
        ("splits", "r", "words"),
        [
            (("train", "test"), 0.8, "1 pair in different splits is likely to be one person"),
            (("test", "test"), 0.8, "no two in different splits look like one person"),
            (("train", "test"), 0.97, "1 pair under two names looked like copies of one image"),
        ],
    )
    def test_near_copies_are_counted(self, results, tmp_path, splits, r, words):
        inputs = self.with_sketches(results.inputs)
        self.pair(inputs, tmp_path, splits, r)
        text = self.said(inputs, tmp_path)
        assert words in text
        assert "were not compared" not in text

    def test_encoders_are_compared_by_what_they_list(self, results, tmp_path):
        def known(seen: PretrainedOn) -> str:
            encoders = tuple(replace(each, seen=seen) for each in results.inputs.encoders)
            return self.said(replace(results.inputs, encoders=encoders), tmp_path)

        people = frozenset({"a", "b"})
        assert "By name, none of those held out is among the 2 subjects" in known(
            PretrainedOn(people)
        )
        assert "By name and image file, none" in known(PretrainedOn(people, frozenset({"0"})))
        assert "By name, image file and brain, none" in known(
            PretrainedOn(people, frozenset({"0"}), sketches=("AA",))
        )
        unknown = known(PretrainedOn(None))
        assert "Unknown for simclr" in unknown
        assert "none of those held out" not in unknown

    def test_all_pages_say_the_same(self, results, drawn):
        sentence = "The brains themselves were not compared"
        assert all(sentence in text for text in pages(results, drawn).values())


def test_a_cohort_of_few_scans_shows_each_picture_once(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(4), tasks={}, skill={})
    run(folders, tmp_path / "out", tasks={})
    shown = re.findall(r"Three planes of scan (\d+)", (tmp_path / "out/report.html").read_text())
    assert 2 < len(shown) == len(set(shown))
