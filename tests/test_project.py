from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from neurofoundry.errors import UsageError
from neurofoundry.params import load, load_text, validate
from neurofoundry.project import SECTIONS, Params, PreprocessSections, StageSections
from neurofoundry.runtime.code import deciding_code
from neurofoundry.runtime.stage import STAGES

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole() -> Params:
    return load(ROOT / "params.yaml", Params)


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
def test_a_stage_reads_its_sections_alone_as_from_the_whole(
    whole: Params, sections: type[StageSections]
) -> None:
    plain = whole.model_dump(mode="json", by_alias=True)
    names = (*sections.names(), "tracking")
    document = json.dumps({name: plain[name] for name in names})
    alone = load_text(document, sections, origin="--params")
    assert alone == whole.read_by(sections)
    assert set(sections.model_fields) == set(names)
    for name in names:
        assert getattr(alone, name) == getattr(whole, name)
    assert alone.deciding() == {name: plain[name] for name in sections.names()}


def test_sections_of_another_stage_and_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--params[\s\S]*preprocess: missing"):
        load_text('{"seed": 1}', PreprocessSections, origin="--params")
    text = '{"preprocess": {"registration": "elastic"}}'
    with pytest.raises(UsageError, match=r"preprocess\.registration"):
        load_text(text, PreprocessSections, origin="--params")


def test_a_task_becomes_a_folder_and_is_named_like_one(whole: Params) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    values["tasks"]["../age"] = values["tasks"]["age"]
    with pytest.raises(UsageError, match=r"tasks\.\.\./age[\s\S]*match pattern"):
        validate(values, Params, origin="params.yaml")


@pytest.mark.parametrize(
    ("section", "name"), [("tasks", "sex"), ("finetune.initializations", "scratch")]
)
def test_names_of_folders_differ_in_more_than_their_case(
    section: str, name: str, whole: Params
) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    inside = values
    for part in section.split("."):
        inside = inside[part]
    inside[name.upper()] = inside[name]
    with pytest.raises(UsageError, match=f"{section}: '{name}' and '{name.upper()}' differ"):
        validate(values, Params, origin="params.yaml")


def test_who_does_not_pretrain_needs_nobody_to_pretrain_on(whole: Params) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    values["ingest"]["splits"] = {"mode": "folds", "folds": 5}
    with pytest.raises(UsageError, match=r"or pretrain\.methods to \[\]"):
        validate(values, Params, origin="params.yaml")
    values["pretrain"]["methods"] = []
    validate(values, Params, origin="params.yaml")


def test_what_is_promoted_is_made(whole: Params) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    rule = values["evaluate"]["promotion"] | {"initialization": "simclr-ensemble"}
    values["evaluate"]["promotion"] = rule
    with pytest.raises(UsageError, match=r"simclr-ensemble would be one model[\s\S]*\[0, 1, 2\]"):
        validate(values, Params, origin="params.yaml")
    values["finetune"]["seeds"] = [0, 1, 2]
    validate(values, Params, origin="params.yaml")
    rule["initialization"] = "nobody-ensemble"
    with pytest.raises(UsageError, match="no initialization 'nobody-ensemble'"):
        validate(values, Params, origin="params.yaml")


SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}


@pytest.mark.parametrize(
    ("splits", "read", "remedy"),
    [
        (SHARES, ["pretrain"], "or pretrain.splits to [train]"),
        ({"mode": "stratified", **SHARES}, ["pretrain"], "or pretrain.splits to [train]"),
        ({"mode": "folds", "folds": 5}, ["pretrain", "train"], "such as 0.2"),
    ],
)
def test_somebody_must_be_left_to_pretrain_on(
    whole: Params, splits: dict[str, object], read: list[str], remedy: str
) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    values["ingest"]["splits"] = splits
    values["pretrain"]["splits"] = read
    with pytest.raises(UsageError, match="gives nobody to") as refused:
        validate(values, Params, origin="params.yaml")
    assert remedy in str(refused.value)
    if splits.get("mode") != "folds":
        values["pretrain"]["splits"] = ["train"]
    else:
        values["ingest"]["splits"] = {**splits, "pretrain": 0.2}
    assert validate(values, Params, origin="params.yaml").pretrain.splits


def test_dvc_runs_a_stage_again_for_the_sections_it_reads() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    declared = {name: tuple(stage["params"]) for name, stage in stages.items()}
    assert declared == {stage: sections.names() for stage, sections in SECTIONS.items()}


def test_dvc_runs_a_stage_again_for_the_code_that_decides_it() -> None:
    for name, declared in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        packages = {re.split("[./]", each)[0] for each in deciding_code(STAGES[name].entry)}
        used = {
            f"neurofoundry/{each}{'' if (ROOT / 'neurofoundry' / each).is_dir() else '.py'}"
            for each in packages
        }
        deps = {dep for dep in declared["deps"] if dep.startswith("neurofoundry/")}
        assert deps == used, name


def test_ingest_refuses_a_task_without_a_column_by_itself(whole: Params) -> None:
    values = whole.model_dump(mode="json", by_alias=True, include={"ingest", "seed"})
    values["tasks"] = {"iq": {"kind": "regression", "column": "iq"}}
    with pytest.raises(UsageError, match=r"tasks.iq: no column 'iq'"):
        validate(values, SECTIONS["ingest"], origin="--params")


def test_patches_need_a_segmentation(whole: Params) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    values["finetune"]["patch"] = 96
    with pytest.raises(UsageError, match=r"finetune\.patch: no effect, as no task is a segment"):
        validate(values, Params, origin="params.yaml")


@pytest.mark.parametrize("task", ["age", "unheard-of"])
def test_a_prevalence_is_declared_for_a_task_of_two_classes(whole: Params, task: str) -> None:
    values = whole.model_dump(mode="json", by_alias=True)
    values["evaluate"]["prevalence"] = {task: 0.1}
    with pytest.raises(
        UsageError, match=rf"evaluate\.prevalence\.{task}: not one of the two-class"
    ):
        validate(values, Params, origin="params.yaml")
