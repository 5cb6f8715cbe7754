"""What people read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from neurofoundry.evaluate.report import narrative
from neurofoundry.evaluate.report.embedding_map import PAGE
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs
from tests.support.page import Page


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


def test_the_answer_comes_first(page):
    assert re.search(
        r"<h1>In (none|\d) of 4 tasks (is )?the model chosen on validation (is )?"
        r"shown to be better than scratch</h1>",
        page.html,
    )
    assert page.html.index('class="answers"') < page.html.index('class="forest"')
    for task in TASKS:
        assert f">{task}</a>" in page.html


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
    assert re.search(r"<h1>The model \w+ on validation is (not )?shown to be better", page.html)
    for card in (tmp_path / "out").glob("*.md"):
        assert "<b>age" not in card.read_text()
        assert "<script" not in card.read_text()


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


def test_the_model_card_holds_the_same_numbers(evaluated):
    card = (evaluated.dir / "model_card.md").read_text()
    row = pd.read_csv(evaluated.dir / "tables/metrics.tsv", sep="\t").iloc[0]
    assert f"| {row['init']} |" in card
    assert narrative.number(row["value"], "auc") in card
    assert "Not for diagnosis" in card
    assert "{{" not in card
    front = yaml.safe_load(card.split("---\n")[1])
    (model,) = front["model-index"]
    scores = json.loads((evaluated.dir / "headline.json").read_text())
    told = {each["task"]["name"]: each["metrics"][0]["value"] for each in model["results"]}
    assert told == pytest.approx(scores, abs=1e-4)
    assert "synthetic" not in front["tags"]


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
    assert "None" not in text


def test_the_checklist_is_filled_from_the_run_and_names_nobody(usual, evaluated):
    text = (evaluated.dir / "checklist.md").read_text()
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t")
    held = scans[scans["usable"] & (scans["split"] == "test")]
    assert f"test, familiar sites {held['person'].nunique()} subjects and {len(held)} scans" in text
    assert f"{len(scans) + 3} files examined; 3 not used (cut short: 2; " in text
    number = json.loads((evaluated.dir / "metrics.json").read_text())
    shown = number["sex"]["scratch"]["1.0"]["test"]["auc"]
    assert narrative.number(shown["value"], "auc") in text
    funding = next(line for line in text.splitlines() if line.startswith("- **18a"))
    assert "Left to the author" in funding
    for name in {*scans["subject"], *scans["person"], *scans["scan_id"]}:
        assert name not in text


def test_the_methods_say_what_the_run_has_done(evaluated):
    text = (evaluated.dir / "methods.md").read_text()
    assert "registered to the MNI152 template" in text
    assert "pretrained without labels on" in text
    assert re.search(r"with SimCLR \[\d\]", text)
    assert "{{" not in text
    assert "None" not in text
    body, listed = text.split("## References")
    cited = list(dict.fromkeys(re.findall(r"\[(\d+)\]", body)))
    assert cited == re.findall(r"^(\d+)\. ", listed, re.MULTILINE)
    assert cited == [str(number) for number in range(1, len(cited) + 1)]
    assert "N4ITK" not in listed  # it was not used
