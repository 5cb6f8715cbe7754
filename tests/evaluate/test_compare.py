"""Evaluations against each other; the oracle is evaluate itself, with both models in one run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from neurofoundry.cli import main as cli
from neurofoundry.contracts.tables import write_table
from neurofoundry.errors import DataError, UsageError
from neurofoundry.evaluate import compare, predictions
from neurofoundry.evaluate.evidence import Evidence, Model, read_evidence
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.run import evaluate
from neurofoundry.runtime import stage
from neurofoundry.stats.comparisons import holm
from neurofoundry.tasks import Task
from tests.evaluate.conftest import TASKS, Folders, scans_table, write_inputs, write_record

TWO = {name: TASKS[name] for name in ("alzheimers", "age")}
NAMES = {
    "ingest": "cohort",
    "preprocess": "volumes",
    "pretrain/simclr": "encoder",
    "finetune": "models",
}


def publish(folders: Folders, out: Path, tasks: dict[str, Task] = TWO, seed: int = 0) -> Path:
    """Run evaluate as the command does."""
    values = EvaluateParams(reference="scratch", bootstraps=200)
    given = {"evaluate": values, "tasks": tasks, "seed": seed}
    return stage.run(
        "evaluate",
        lambda work: evaluate(work, **folders.inputs, params=values, tasks=tasks, seed=seed),
        to=stage.Destination(out),
        params=given,
        inputs={name: folders.root / folder for name, folder in NAMES.items()},
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> tuple[Path, Path, Path]:
    """An evaluation of scratch and simclr; one whose scratch says what simclr says, and whose
    encoder was pretrained otherwise; and a copy of the first."""
    root = tmp_path_factory.mktemp("three")
    skill = {"simclr": (2.4, 1.6), "scratch": (1.3, 0.8)}
    both = write_inputs(root / "both", scans_table(160), tasks=TWO, skill=skill, seeds=(0, 1))
    other = Folders(shutil.copytree(both.root, root / "other"))
    for task in TWO:
        for seed in (0, 1):
            path = both.predictions(task, "simclr", seed=seed)
            shutil.copyfile(path, other.predictions(task, "scratch", seed=seed))
    for folders, epochs in ((both, 8), (other, 9)):
        given = {"epochs": epochs, "batch_size": 16}
        write_record(folders.root / "encoder", "pretrain", pretrain=given)
    first = publish(both, root / "first/evaluation")
    second = publish(other, root / "second/evaluation")
    shutil.copytree(first, root / "copy/evaluation")
    return first, second, root / "copy/evaluation"


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False)


def test_differences_are_those_that_evaluate_finds_between_two_models_of_one_run(three):
    between = compare.compare(three[:2]).differences.query("init == 'scratch'")
    expected = read(three[0] / "tables/differences.tsv").query(
        "init == 'simclr' and versus == 'scratch'"
    )
    keys = ["task", "split", "metric"]
    together = between.merge(expected, on=keys, suffixes=("", "_expected"))
    assert len(together) == len(between) == len(expected) > 20
    for column in ("value", "low", "high", "p"):
        assert np.allclose(
            together[column], together[f"{column}_expected"], rtol=1e-6, atol=1e-9, equal_nan=True
        )
    assert (together["verdict"].fillna("") == together["verdict_expected"].fillna("")).all()
    assert {"better"} <= set(together["verdict"])


def test_values_are_those_that_each_evaluation_has_published(three):
    compared = compare.compare(three[:2]).values
    keys = ["task", "init", "fraction", "split", "metric"]
    for letter, folder in zip("AB", three[:2], strict=True):
        published = read(folder / "tables/metrics.tsv").query("split != 'val'")
        together = compared[compared["evaluation"] == letter].merge(published, on=keys)
        assert len(together) == len(published)
        for column in ("value", "low", "high"):
            assert np.allclose(together[f"{column}_x"], together[f"{column}_y"], equal_nan=True)


def test_an_evaluation_differs_from_its_copy_by_exactly_nothing(three):
    comparison = compare.compare([three[0], three[2]])
    measured = comparison.differences[comparison.differences["value"].notna()]
    assert len(measured) > 50
    assert (measured[["value", "low", "high"]] == 0).all(axis=None)
    assert (measured["p"] == 1).all()
    assert comparison.parameters.empty
    assert set(comparison.titles.values()) == {"first/evaluation", "copy/evaluation"}


def test_two_perfect_models_that_say_the_same_differ_by_nothing(tmp_path):
    tasks = {"sex": TASKS["sex"]}
    skill = {"simclr": (60.0, 60.0), "scratch": (60.0, 60.0)}
    folders = write_inputs(tmp_path / "in", scans_table(120), tasks=tasks, skill=skill)
    out = publish(folders, tmp_path / "evaluation", tasks)
    differences = compare.compare([out, out]).differences
    areas = differences.query("metric == 'auc' and init == 'simclr'")
    assert (areas[["value", "low", "high"]] == 0).all(axis=None)


def test_the_comparisons_of_a_split_are_adjusted_for_their_number(three):
    differences = compare.compare(three[:2]).differences
    adjusted = differences[differences["p_holm"].notna()]
    assert set(adjusted["metric"]) == {"auc", "mae"}
    assert not adjusted["init"].str.startswith("baseline-").any()
    assert adjusted.groupby("split").size().to_dict() == {"test": 8, "ood": 8}
    ensembles = adjusted["init"].str.endswith("-ensemble")
    for _, family in adjusted.groupby(["split", ensembles]):
        assert family["p_holm"].to_list() == pytest.approx(holm(family["p"].tolist()))


def test_parameters_that_differ_are_named_with_the_stages_that_read_them(three):
    table = compare.compare(three[:2]).parameters.set_index("parameter")
    assert table.loc["pretrain.epochs"].tolist() == ["pretrain/simclr", "8", "9"]
    first, second = (
        compare.Evaluation(letter, letter, {}, None, 0, stages)  # type: ignore[arg-type]
        for letter, stages in (
            ("A", {**ran("ingest", seed=1), **ran("finetune", seed=1, x={"y": [1], "z": "a"})}),
            ("B", {**ran("ingest", seed=2), **ran("finetune", seed=2, x={"y": [2], "z": "a"})}),
        )
    )
    parameters = compare.parameters([first, second])
    assert parameters.values.tolist() == [
        ["seed", "ingest, finetune", "1", "2"],
        ["x.y", "finetune", "[1]", "[2]"],
    ]


def test_a_stage_of_one_evaluation_only_and_other_code_are_named():
    first, second = (
        compare.Evaluation(letter, letter, {}, None, 0, stages)  # type: ignore[arg-type]
        for letter, stages in (
            ("A", {**ran("pretrain/mae"), **ran("ingest")}),
            ("B", ran("ingest", code="f" * 64)),
        )
    )
    assert compare.parameters([first, second]).values.tolist() == [
        ["", "pretrain/mae", "used", "not used"],
        ["code", "ingest", "c" * 10, "f" * 10],
    ]


def ran(name: str, code: str = "c" * 64, **params: object) -> dict:
    return {name: {"code_sha256": code, "data_version": "d", "params": params}}


def change(folder: Path, out: Path, task: str, **arrays) -> Path:
    """A copy of an evaluation with other predictions; a value may be a function of the old."""
    shutil.copytree(folder, out)
    path = out / "predictions" / f"{task}.npz"
    with np.load(path) as content:
        old = dict(content)
    new = {name: value(old) if callable(value) else value for name, value in arrays.items()}
    np.savez_compressed(path, **{**old, **new})
    return out


def rows(split: str, count: int):
    """Positions of the first scans of a split."""
    return lambda old: np.flatnonzero(old["split"] == split)[:count]


def test_what_is_printed_for_programs_holds_the_tables(three):
    comparison = compare.compare(three[:2])
    told = json.loads(compare.as_json(comparison))
    assert list(told["titles"]) == ["A", "B"]
    assert len(told["values"]) == len(comparison.values)
    first, row = told["differences"][0], comparison.differences.iloc[0]
    assert (first["task"], first["metric"]) == (row["task"], row["metric"])
    assert first["value"] == pytest.approx(row["value"])
    assert "NaN" not in compare.as_json(comparison)


def test_other_test_scans_are_refused_with_their_number_and_nobodys_name(three, tmp_path):
    def renamed(old):
        scan = old["scan"].copy()
        scan[rows("ood", 3)(old)] = [letter * 64 for letter in "xyz"]
        return scan

    other = change(three[0], tmp_path / "other", "age", scan=renamed)
    with pytest.raises(
        DataError, match=r"age: in split 'ood', 3 scans are in A .* 3 in B"
    ) as error:
        compare.compare([three[0], other])
    assert "alzheimers" not in str(error.value)
    assert "sub-" not in str(error.value)
    assert "xxxx" not in str(error.value)


def test_a_scan_that_moved_from_test_to_ood_is_refused(three, tmp_path):
    def moved(old):
        split = old["split"].copy()
        split[rows("test", 1)(old)] = "ood"
        return split

    other = change(three[0], tmp_path / "other", "age", split=moved)
    with pytest.raises(
        DataError, match=r"in split 'test', 1 scans are in A .*not in B .*, 0 in B"
    ) as error:
        compare.compare([three[0], other])
    assert "in split 'ood', 0 scans are in A" in str(error.value)


def test_other_labels_are_refused_with_their_number(three, tmp_path):
    def relabelled(old):
        target = old["target"].copy()
        target[rows("test", 2)(old)] = 1 - target[rows("test", 2)(old)]
        return target

    other = change(three[0], tmp_path / "other", "alzheimers", target=relabelled)
    with pytest.raises(DataError, match="alzheimers: in split 'test', 2 of"):
        compare.compare([three[0], other])


def test_other_persons_behind_the_same_scans_are_refused(three, tmp_path):
    other = change(three[0], tmp_path / "other", "age", person=lambda old: old["person"] // 2)
    with pytest.raises(DataError, match="disagree on which scans are of one person"):
        compare.compare([three[0], other])


def test_persons_may_be_numbered_differently(three, tmp_path):
    other = change(three[0], tmp_path / "other", "age", person=lambda old: 1000 - old["person"])
    assert not compare.compare([three[0], other]).differences.empty


def test_other_val_scans_are_no_reason_to_refuse(three, tmp_path):
    def halved(name):
        def keep(old):
            kept = ~((old["split"] == "val") & (np.arange(len(old["split"])) % 2 == 0))
            return old[name][:, kept] if name.startswith("outputs") else old[name][kept]

        return keep

    names = (
        "scan",
        "person",
        "split",
        "target",
        *(f"outputs_{place}" for place in range(7)),
    )
    other = change(three[0], tmp_path / "x", "alzheimers", **{name: halved(name) for name in names})
    differences = compare.compare([three[0], other]).differences.query("task == 'alzheimers'")
    areas = differences.query("metric == 'auc'")
    assert (areas["value"] == 0).all()
    assert (differences.query("metric == 'balanced_accuracy'")["value"].fillna(0) != 0).any()


def test_other_classes_are_refused(three, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(three[0], other)
    record = json.loads((other / "stage.json").read_text())
    record["params"]["tasks"]["alzheimers"]["classes"] = ["AD", "CN"]
    (other / "stage.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r'classes is \["CN", "AD"\] in A'):
        compare.compare([three[0], other])


def test_what_is_no_evaluation_or_too_old_a_one_is_named(three, tmp_path):
    with pytest.raises(UsageError, match="1 evaluations to compare"):
        compare.compare(three[:1])
    with pytest.raises(UsageError, match="no finished output of 'evaluate'"):
        compare.compare([three[0], tmp_path])
    old = tmp_path / "old"
    shutil.copytree(three[0], old)
    shutil.rmtree(old / "predictions")
    with pytest.raises(DataError, match=r"age.npz|alzheimers.npz.*Run evaluate again"):
        compare.compare([three[0], old])
    (old / "provenance.json").unlink()
    with pytest.raises(DataError, match=r"provenance.json.*Run evaluate again"):
        compare.compare([three[0], old])


def test_tasks_that_not_all_have_are_left_out_and_said_to_be(three, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(three[1], other)
    record = json.loads((other / "stage.json").read_text())
    del record["params"]["tasks"]["age"]
    (other / "stage.json").write_text(json.dumps(record))
    comparison = compare.compare([three[0], other])
    assert set(comparison.values["task"]) == {"alzheimers"}
    assert comparison.left_out == ("age",)
    console = Console(record=True, width=200)
    compare.show(comparison, console)
    assert "not all have them: age" in console.export_text()
    record["params"]["tasks"] = {}
    (other / "stage.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="No task is in all of"):
        compare.compare([three[0], other])


def test_predictions_come_back_as_they_were_and_name_nobody(tmp_path):
    tasks = {"stroke": TASKS["stroke"]}
    folders = write_inputs(tmp_path / "in", scans_table(60), tasks=tasks, seeds=(0, 3))
    before = read_evidence("stroke", tasks["stroke"], folders.read(), folders.root / "models")
    nothing = Model("none", 0.5, (), np.array([]), "no labels in train")
    before = Evidence(
        "stroke", before.task, before.scans, before.targets, (*before.models, nothing)
    )
    predictions.write(tmp_path / "kept", before)
    after = predictions.read(tmp_path / "kept", "stroke", tasks["stroke"])
    assert [(m.name, m.fraction, m.seeds, m.reason) for m in after.models] == [
        (m.name, m.fraction, m.seeds, m.reason) for m in before.models
    ]

    # The order is that of the hashes: outputs are compared with the labels that they belong to.
    def rows_of(evidence, model):
        columns = (evidence.targets, evidence.scans["split"], *model.outputs[:, :, 1])
        return sorted(zip(*columns, strict=True))

    for one, two in zip(before.models[:-1], after.models[:-1], strict=True):
        assert rows_of(before, one) == rows_of(after, two)
    sizes = (sorted(e.scans.groupby("person").size()) for e in (before, after))
    assert next(sizes) == next(sizes)
    with np.load(tmp_path / "kept/stroke.npz") as content:
        text = " ".join(str(value) for array in content.values() for value in array.ravel())
    for column in ("person", "subject", "scan_id", "sha256", "path"):
        assert not [name for name in before.scans[column] if name in text]


def test_tables_and_a_page_are_written_whole_and_the_same_each_time(three, tmp_path):
    comparison = compare.compare(three)
    compare.write(comparison, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["comparison.md", "differences.tsv", "parameters.tsv", "values.tsv"]
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    compare.write(compare.compare(three), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    page = before["comparison.md"].decode()
    assert "| model | A | B | C | B − A | C − A |" in page
    assert "| pretrain.epochs | pretrain/simclr | 8 | 9 | 8 |" in page
    assert re.search(r"^\| simclr \| (\S+ \S+ \| ){3}the same \| the same \|$", page, re.MULTILINE)
    assert str(three[0].parent.parent) not in page
    assert set(read(tmp_path / "out/differences.tsv")["evaluation"]) == {
        "B",
        "C",
    }


def test_a_folder_that_holds_something_else_is_not_replaced(three, tmp_path):
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "mine.tsv")
    with pytest.raises(UsageError, match="holds something else"):
        compare.guard(tmp_path, three[:2])
    compare.write(compare.compare(three[:2]), tmp_path / "out")
    compare.guard(tmp_path / "out", three[:2])
    write_table(pd.DataFrame({"a": [1]}), tmp_path / "out/mine.tsv")
    with pytest.raises(UsageError, match="holds something else"):
        compare.guard(tmp_path / "out", three[:2])


def test_the_command_prints_and_writes(three, tmp_path):
    arguments = ["compare", *map(str, three[:2]), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "pretrain.epochs" in result.output
    assert "B − A" in result.output
    assert (tmp_path / "out/comparison.md").exists()
