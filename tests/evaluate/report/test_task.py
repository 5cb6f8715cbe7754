"""The section of a task."""

from __future__ import annotations

import re

import pandas as pd

from neurofoundry.evaluate.report import narrative
from tests.evaluate.conftest import TASKS


def test_every_model_and_baseline_has_a_row_with_its_numbers(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/metrics.tsv", sep="\t")
    rows = table.query("metric in ['auc', 'mae'] and split in ['test', 'ood']")
    assert len(rows) == 2 * 4 * (4 + 3)
    for row in rows.to_dict("records"):
        value, metric = row["value"], row["metric"]
        text = f"{narrative.number(value, metric, beside=row)} ({narrative.interval(row, metric)})"
        assert text in page.words.replace("( ", "(")


def test_a_model_that_does_not_beat_the_baseline_says_so(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/differences.tsv", sep="\t", keep_default_na=False)
    rows = table[
        table["versus"].isin(["baseline-age-sex-site", "baseline-age-site"])
        & (table["split"] == "test")
        & (table["metric"] == "auc")
    ]
    assert set(rows["verdict"]) == {"better", "none"}
    unbeaten = len(rows[rows["verdict"] == "none"])
    forests = re.findall(r'<small class="doubt">\s*([^<]*)</small>', page.html)
    assert sum("site alone" in note for note in forests) == unbeaten


def test_confusion_matrices_are_those_of_the_table(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/confusion.tsv", sep="\t", keep_default_na=False)
    part = table.query("task == 'stroke' and init == 'scratch' and split == 'ood'")
    cells = part.set_index(["true", "predicted"])["scans"]
    text = "scratch, new sites predicted no predicted yes"
    for true in ("no", "yes"):
        whole = cells[true].sum()
        text += f" {true}"
        for called in ("no", "yes"):
            text += f" {cells[true, called]} {100 * cells[true, called] / whole:.0f} %"
    assert text in page.words.replace(" , ", ", ")


def test_ages_are_corrected_on_validation_and_on_training_subjects(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/calibration.tsv", sep="\t")
    rows = table.query("task == 'age' and init == 'scratch' and split == 'test'")
    cells = []
    for name in ("mae", "bias_slope"):
        part = rows[rows["metric"] == name]
        assert part["corrected"].to_list() == ["no", "val", "train"]
        cells += [
            f"{narrative.number(row['value'], name, beside=row)} {narrative.interval(row, name)}"
            for row in part.to_dict("records")
        ]
    assert " ".join(["scratch", *cells]) in page.words


def test_baselines_stand_in_the_plots_of_subgroups(evaluated, page):
    parts = page.html.split("<h3>Subgroups: ")[1:]
    assert len(parts) == 4
    part = parts[list(TASKS).index("age")].split("<h3>")[0]
    chosen = part.split(",")[0]
    keys, where = ["split", "variable", "group"], "task == 'age' and metric == 'mae'"
    groups, everybody = (
        pd.read_csv(evaluated.dir / f"tables/{name}.tsv", sep="\t", na_values="n/a").query(where)
        for name in ("subgroups", "metrics")
    )
    everybody = everybody[everybody["split"] != "val"].assign(variable="", group="")
    values = pd.concat([groups, everybody]).pivot(index=keys, columns="init", values="value")
    values = values.dropna(subset=chosen)
    below = [name for name in values if name.startswith("baseline-")]
    assert len(below) == 3
    # In every group, and among everybody at familiar and at new sites.
    assert part.count('<svg class="mark" x=') == values[below].notna().to_numpy().sum()
    unbeaten = values[below].min(axis=1) <= values[chosen]
    assert part.count('class="ahead"') == unbeaten.sum()
