"""What people read."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.report.embedding_map import PAGE
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs, write_record


class Page(HTMLParser):
    """The text of a page, the resources it asks for, and whether its tags match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.resources, self.open = [], [], []
        self.html = path.read_text()
        self.feed(self.html)
        self.words = re.sub(r"\s+", " ", " ".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.resources += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def page(evaluated):
    return Page(evaluated.dir / "report.html")


def test_it_is_one_whole_page_that_asks_for_nothing(page):
    assert page.open == []
    assert page.resources
    for resource in page.resources:
        assert resource.startswith(("#", "data:image/png;base64,")) or resource == PAGE
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", page.html)


def test_no_subject_is_named_in_anything_that_evaluate_writes(usual, evaluated):
    scans = pd.read_csv(usual.root / "cohort/scans.tsv", sep="\t")
    excluded = pd.read_csv(usual.root / "cohort/excluded.tsv", sep="\t")
    names = {*scans["person"], *scans["subject"], *scans["scan_id"], *scans["path"]}
    names |= {*scans["sha256"], *excluded["path"], "sub-0001_T1w.nii.gz"}
    files = [path for path in evaluated.dir.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        text = _text(path)
        assert "sub-" not in text
        assert not any(name in text for name in names)


def _text(path: Path) -> str:
    """What a file says, a compressed one too."""
    if path.suffix != ".npz":
        return path.read_text()
    with np.load(path, allow_pickle=False) as content:
        return "\n".join("\n".join(array.ravel().astype(str)) for array in content.values())


def test_pictures_carry_their_pixels_alone(usual, tmp_path):
    path = tmp_path / "scan.png"
    info = PngInfo()
    info.add_text("Comment", "sub-0001")
    Image.new("L", (8, 8), 40).save(path, pnginfo=info)
    assert b"sub-0001" in path.read_bytes()
    from base64 import b64decode

    from neurofoundry.evaluate.report.build import _embed

    data = b64decode(_embed(path, width=100).split(",")[1])
    assert b"sub-0001" not in data
    assert data.startswith(b"\x89PNG")


def test_the_answer_comes_first(page):
    assert re.search(
        r"<h1>In (none|\d) of 4 tasks (is )?the model chosen on validation (is )?"
        r"shown to be better than scratch</h1>",
        page.html,
    )
    assert page.html.index('class="answers"') < page.html.index('class="forest"')
    for task in TASKS:
        assert f">{task}</a>" in page.html


def test_it_tells_where_every_scan_went(usual, page):
    volumes = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    usable = volumes[volumes["usable"]]
    failed = len(volumes) - len(usable)
    for text in (
        f"{len(volumes) + 3} files looked at",
        "3 not used: cut short: 2 a copy of …: 1",
        f"{len(volumes)} scans of {volumes['person'].nunique()} subjects",
        f"{failed} failed quality control: overlap with the template: {failed}",
        f"{len(usable)} usable scans of {usable['person'].nunique()} subjects",
    ):
        assert text in page.words.replace(" : ", ": ")


def test_the_split_table_counts_persons_once(usual, page):
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    test = scans[scans["usable"] & (scans["split"] == "test")]
    first = test.sort_values("age").drop_duplicates("person")
    row = [
        "Test, familiar sites",
        str(len(first)),
        str(len(test)),
        "3",
        f"{first['age'].mean():.1f} ± {first['age'].std(ddof=0):.1f}",
        f"{100 * (first['sex'] == 'F').mean():.0f} %",
    ]
    assert " ".join(row) in page.words


def test_every_model_and_floor_has_a_row_with_its_numbers(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/metrics.tsv", sep="\t")
    rows = table.query("metric in ['auc', 'mae'] and split in ['test', 'ood']")
    assert len(rows) == 2 * 4 * (4 + 3)
    for row in rows.to_dict("records"):
        value, metric = row["value"], row["metric"]
        text = f"{narrative.number(value, metric)} ({narrative.interval(row, metric)})"
        assert text in page.words.replace("( ", "(")


def test_a_model_that_does_not_beat_the_floor_says_so(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/differences.tsv", sep="\t", keep_default_na=False)
    rows = table[
        table["versus"].isin(["floor-age-sex-site", "floor-age-site"])
        & (table["split"] == "test")
        & (table["metric"] == "auc")
    ]
    assert set(rows["verdict"]) == {"better", "none"}
    unbeaten = len(rows[rows["verdict"] == "none"])
    forests = re.findall(r'<small class="doubt">\s*([^<]*)</small>', page.html)
    assert sum("site alone" in note for note in forests) == unbeaten


def test_every_initialization_has_a_reliability_plot_of_its_own(evaluated, page):
    points = pd.read_csv(evaluated.dir / "plots/reliability.tsv", sep="\t")
    wanted = points[points["split"] == "test"].groupby(["task", "init"]).ngroups
    assert page.html.count(': stated and observed risk"') == wanted == 3 * 4


def test_confusion_matrices_are_those_of_the_table(evaluated, page):
    table = pd.read_csv(evaluated.dir / "tables/confusion.tsv", sep="\t", keep_default_na=False)
    part = table.query("task == 'stroke' and init == 'scratch' and split == 'ood'")
    cells = part.set_index(["true", "predicted"])["scans"]
    text = "scratch, new sites called no called yes"
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
            f"{narrative.number(row['value'], name)} {narrative.interval(row, name)}"
            for row in part.to_dict("records")
        ]
    assert " ".join(["scratch", *cells]) in page.words


def test_floors_stand_in_the_plots_of_subgroups(evaluated, page):
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
    below = [name for name in values if name.startswith("floor-")]
    assert len(below) == 3
    # In every group, and among everybody at familiar and at new sites.
    assert part.count('<svg class="mark" x=') == values[below].notna().to_numpy().sum()
    unbeaten = values[below].min(axis=1) <= values[chosen]
    assert part.count('class="ahead"') == unbeaten.sum()


def test_real_cohorts_are_not_called_synthetic(page, tmp_path):
    assert "synthetic" not in page.words
    folders = write_inputs(tmp_path / "in", scans_table(40, dataset="phantom"), tasks={})
    run(folders, tmp_path / "out", tasks={})
    assert "These are synthetic heads" in Page(tmp_path / "out/report.html").words


def test_names_are_escaped(tmp_path):
    tasks = {"<b>age & $x^2$": TASKS["age"]}
    scans = scans_table(120).replace({"site": {"alder": "<script>alert(1)</script>"}})
    folders = write_inputs(tmp_path / "in", scans, tasks=tasks)
    run(folders, tmp_path / "out", tasks=tasks)
    page = Page(tmp_path / "out/report.html")
    assert page.open == []
    assert "<script" not in page.html
    assert "<b>age & $x^2$" in page.words


def test_four_subjects_without_labels_are_told_plainly(tmp_path):
    scans = scans_table(4).assign(diagnosis=None, stroke=None)
    folders = write_inputs(tmp_path / "in", scans, estimable=False)
    work = run(folders, tmp_path / "out")
    page = Page(tmp_path / "out/report.html")
    assert page.open == []
    assert "No task can be estimated in this cohort" in page.words
    assert "No model was made: no labels in train." in page.words
    assert "usable scans of 4 subjects" in page.words
    assert "The loss went from" in page.words
    assert work.summary == {"promoted": False}


def test_without_tasks_the_cohort_and_the_pretraining_are_shown(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(8), tasks={}, skill={})
    run(folders, tmp_path / "out", tasks={})
    page = Page(tmp_path / "out/report.html")
    assert "No task is declared" in page.words
    assert "The loss went from" in page.words
    assert (tmp_path / "out/metrics.json").read_text() == "{}\n"


def test_weights_from_elsewhere_leave_leakage_unknown(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(40), tasks={}, skill={})
    for name in ("subjects.tsv", "history.tsv"):
        (tmp_path / "in/encoder" / name).unlink()
    run(folders, tmp_path / "out", tasks={})
    page = Page(tmp_path / "out/report.html")
    assert page.open == []
    assert "Unknown for simclr : these weights came without a list" in page.words
    assert "on subjects that are not known (weights from elsewhere)" in page.words
    card = (tmp_path / "out/model_card.md").read_text()
    assert "Unknown for simclr: these weights came without a list" in card
    assert "None subjects" not in card + page.words


def test_encoders_of_ones_own_have_no_unknown(page, evaluated):
    assert "Unknown for" not in page.words
    assert "Unknown for" not in (evaluated.dir / "model_card.md").read_text()


def test_the_model_card_holds_the_same_numbers(evaluated):
    card = (evaluated.dir / "model_card.md").read_text()
    row = pd.read_csv(evaluated.dir / "tables/metrics.tsv", sep="\t").iloc[0]
    assert f"| {row['init']} |" in card
    assert narrative.number(row["value"], "auc") in card
    assert "Not for diagnosis" in card
    assert "{{" not in card


TRIPOD_AI = (
    "1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 "
    "16 17 18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c"
)


def test_the_checklist_has_every_item_once_and_in_order(evaluated):
    text = (evaluated.dir / "checklist.md").read_text()
    tripod, claim = text.split("## CLAIM")
    item = re.compile(r"^- \*\*(\d+[a-g]?) [^*]+\.\*\* \S", re.MULTILINE)
    assert item.findall(tripod) == TRIPOD_AI.split()
    assert item.findall(claim) == [str(number) for number in range(1, 45)]
    assert "{{" not in text
    assert "None" not in text.replace("None:", "")


def test_the_checklist_is_filled_from_the_run_and_names_nobody(usual, evaluated):
    text = (evaluated.dir / "checklist.md").read_text()
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t")
    held = scans[scans["usable"] & (scans["split"] == "test")]
    assert f"test, familiar sites {held['person'].nunique()} subjects and {len(held)} scans" in text
    assert f"{len(scans) + 3} files looked at; 3 not used (cut short: 2; " in text
    number = json.loads((evaluated.dir / "metrics.json").read_text())
    shown = number["sex"]["scratch"]["1.0"]["test"]["auc"]
    assert narrative.number(shown["value"], "auc") in text
    funding = next(line for line in text.splitlines() if line.startswith("- **18a"))
    assert "Left to the author" in funding
    for name in {*scans["subject"], *scans["person"], *scans["scan_id"]}:
        assert name not in text


def test_the_checklist_states_the_parameters_of_training_and_says_when_they_are_not_recorded(
    tmp_path,
):
    folders = write_inputs(tmp_path / "in", scans_table(12), tasks={}, skill={})
    training = {"epochs": 7, "learning_rate": 0.002, "initializations": {}}
    write_record(folders.root / "models", "finetune", finetune=training)
    run(folders, tmp_path / "out", tasks={})
    text = (tmp_path / "out/checklist.md").read_text()
    assert "**25 Training.** epochs 7, learning rate 0.002." in text
    assert "to one grid (not recorded)" in text


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
