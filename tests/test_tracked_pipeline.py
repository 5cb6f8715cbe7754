"""What W&B is left of all five stages, read from its own files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
import yaml

from neurofoundry.cli import stages as cli
from neurofoundry.errors import UsageError
from neurofoundry.phantom.dataset import generate
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.runtime import tracking
from tests.support import wandb_file, wandb_server

ROOT = Path(__file__).resolve().parents[1]


def params() -> dict[str, Any]:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["tasks"] = {"age": {"kind": "regression", "column": "age", "required": False}}
    values["ingest"]["splits"].update(pretrain=0.3, train=0.4, val=0.1, test=0.2)
    values["preprocess"].update(grid={"spacing": 6.0}, registration_spacing=6.0)
    values["pretrain"].update(methods=["simclr"], epochs=2, batch_size=4)
    values["pretrain"]["encoder"]["width"] = 0.125
    starts = {"probe": {"encoder": "simclr", "mode": "probe"}}
    values["finetune"].update(
        initializations=starts, epochs=1, fractions=[1.0], seeds=[0], explain=None
    )
    values["evaluate"] = {"bootstraps": 100, "reference": "probe"}
    return values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Records of each job of a whole pipeline run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("NETRC", os.devnull)
        patch.setenv("NEUROFOUNDRY_RUN", "pipeline-7")
        patch.chdir(folder)
        generate(PhantomParams(subjects=16, seed=1, spacing_mm=5.0), Path("data"), 2)
        Path("params.yaml").write_text(yaml.safe_dump(params(), sort_keys=False))
        cli.run_all(Path("data"), Path("out"), workers=1)
        wandb.teardown()
        files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
        read = [list(wandb_file.read(file)) for file in files]
    return {wandb_file.of_kind(each, "run")[0].job_type: each for each in read} | {"": [folder]}


def test_every_stage_is_a_job_of_one_group(runs: dict[str, list[Any]]) -> None:
    jobs = ["ingest", "preprocess", "pretrain-simclr", "finetune", "evaluate", "pipeline"]
    assert set(runs) == {*jobs, ""}
    for job in jobs:
        (run,) = wandb_file.of_kind(runs[job], "run")
        told = wandb_file.config(runs[job])
        assert (run.run_group, told["pipeline_run"]) == ("pipeline-7", "pipeline-7")
        assert len(told["data_version"]) == 64
        assert {"git_commit", "image", "package_version"} <= set(told)


def test_pretraining_has_its_pace_and_the_evaluation_its_numbers_by_name(
    runs: dict[str, list[Any]],
) -> None:
    steps = wandb_file.history(runs["pretrain-simclr"])
    assert [row["_step"] for row in steps] == list(range(len(steps)))
    assert {"loss", "learning_rate", "scans_per_second", "hours_left"} <= set(steps[1])
    assert steps[-1]["hours_left"] == 0
    (folder,) = runs[""]
    metrics = json.loads((folder / "out/evaluation/metrics.json").read_text())
    score = metrics["age"]["probe"]["1.0"]["test"]["mae"]
    told = wandb_file.summary(runs["pipeline"])
    assert told.get("age_mae_test_probe") == score["value"]
    assert told["scans_per_second_simclr"] > 0
    numbers = {name for name, value in told.items() if type(value) in (int, float)}
    assert len({name for name in numbers if "/" not in name and name[0] != "_"}) <= 40
    headline = json.loads((folder / "out/evaluation/headline.json").read_text())
    assert headline == ({"age": score["value"]} if score["value"] is not None else {})
    names = {name for row in wandb_file.history(runs["pipeline"]) for name in row}
    assert {"tables/metrics/_type", "tables/predictions_age/_type"} <= names
    assert "pretraining/simclr_table/_type" in names
    assert len(list((folder / "wandb").rglob("media/images/qc_*.png"))) == 6


def test_the_run_of_the_pipeline_has_the_parameters_of_all_stages(
    runs: dict[str, list[Any]],
) -> None:
    told, given = wandb_file.config(runs["pipeline"]), params()
    assert told["pretrain"]["epochs"] == given["pretrain"]["epochs"]
    assert told["preprocess"]["grid"]["spacing"] == 6.0
    assert told["ingest"]["splits"]["train"] == 0.4
    assert told["finetune"]["initializations"]["probe"]["encoder"] == "simclr"
    assert told["evaluate"]["bootstraps"] == 100
    assert told["tasks"]["age"]["column"] == "age"
    assert told["seed"] == given["seed"]
    assert len(told["data_version"]) == 64


def test_names_are_such_that_wandb_can_sort_by_them(runs: dict[str, list[Any]]) -> None:
    for job in [job for job in runs if job]:
        rows = [*wandb_file.history(runs[job]), wandb_file.summary(runs[job])]
        for name in {name for row in rows for name in row}:
            assert re.fullmatch(r"[_a-zA-Z]\w*(/[_a-zA-Z]\w*)*", name, re.ASCII), (job, name)


def test_the_encoder_is_followed_from_where_it_is_made_to_where_it_is_used(
    runs: dict[str, list[Any]],
) -> None:
    found = {
        (job, each.name): each
        for job in ("pretrain-simclr", "finetune", "evaluate")
        for each in wandb_file.of_kind(runs[job], "artifact")
    }
    made = found["pretrain-simclr", "encoder-simclr"]
    assert not made.use_after_commit
    for job in ("finetune", "evaluate"):
        assert found[job, "encoder-simclr"].use_after_commit
        assert found[job, "encoder-simclr"].digest == made.digest
    report = found["evaluate", "evaluation"]
    assert "report.html" in [each.path for each in report.manifest.contents]
    assert {"latest"} < set(report.aliases)


def test_lineage_leads_from_the_data_to_the_report(runs: dict[str, list[Any]]) -> None:
    made, used = {}, set()
    for job in [job for job in runs if job]:
        for each in wandb_file.of_kind(runs[job], "artifact"):
            if each.use_after_commit:
                used.add((job, each.name, each.digest))
            else:
                made[each.name] = (job, each.digest)
    way = ("dataset", "preprocess", "volumes", "pretrain-simclr", "encoder-simclr", "finetune")
    way += ("models", "evaluate", "evaluation")
    for job, artifact in zip(way[1::2], way[0::2], strict=False):
        assert (job, artifact, made[artifact][1]) in used
    for job, artifact in zip(way[1::2], way[2::2], strict=True):
        assert made[artifact][0] == job


def test_nothing_that_would_leave_names_a_person_or_a_path(runs: dict[str, list[Any]]) -> None:
    (folder,) = runs[""]
    scans = pd.read_csv(folder / "out/volumes/scans.tsv", sep="\t")
    told = {str(name) for column in ("subject", "person", "scan_id", "path") for name in
            scans[column]} | {str(folder), str(ROOT)}  # fmt: skip
    files = [
        path
        for path in (folder / "wandb").rglob("*")
        if path.is_file() and path.parent.name != "logs" and not path.name.startswith("debug")
    ]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [name for name in told if name.encode() in content], path.name


def test_weights_that_exist_already_need_no_pretraining(
    runs: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = runs[""]
    monkeypatch.chdir(folder)
    for name in ("cohort", "volumes"):
        shutil.copytree(folder / "out" / name, tmp_path / "out" / name)
    off = ["tracking.mode=disabled", "pretrain.methods=[]"]
    with pytest.raises(UsageError, match="give weights with --encoder"):
        cli.run_all(Path("data"), tmp_path / "out", overrides=off, workers=1)
    weights = [folder / "out/encoder/simclr"]
    cli.run_all(Path("data"), tmp_path / "out", overrides=off, workers=1, encoder=weights)
    assert not (tmp_path / "out/encoder").exists()
    for name in ("headline.json", "metrics.json"):
        again = (tmp_path / "out/evaluation" / name).read_bytes()
        assert again == (folder / "out/evaluation" / name).read_bytes()


def test_an_agent_of_a_sweep_drives_the_pipeline(
    runs: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sweep file of the docs, over a parameter of evaluate, which costs seconds."""
    (folder,) = runs[""]
    for name in ("data", "params.yaml"):
        (tmp_path / name).symlink_to(folder / name)
    shutil.copytree(folder / "out", tmp_path / "runs/sweep", symlinks=True)
    sweep = yaml.safe_load((ROOT / "neurofoundry/presets/sweep.yaml").read_text())
    sweep["parameters"] = {"evaluate": {"parameters": {"bootstraps": {"values": [150]}}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("NEUROFOUNDRY_RUN", raising=False)
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.trials = [
            {"run_id": "trial-1", "args": {"evaluate": {"value": {"bootstraps": 150}}}}
        ]
        for command in (["sweep", "sweep.yaml"], ["agent", "--count", "1", "me/neurofoundry/s1"]):
            done = subprocess.run(
                [sys.executable, "-m", "wandb", *command],
                **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300},
            )
            assert done.returncode == 0, done.stderr
    assert server.unknown == []
    begun = [given for name, given in server.operations if name == "UpsertBucket"]
    (trial,) = [given for given in begun if given["name"] == "trial-1"][:1]
    assert (trial["jobType"], trial["sweep"]) == ("pipeline", "s1")
    assert json.loads(trial["config"])["evaluate"]["value"]["bootstraps"] == 150
    assert {given["sweep"] for given in begun if given["name"] != "trial-1"} == {None}
    assert len({given["groupName"] for given in begun if given["jobType"]}) == 1


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_training_goes_on_when_the_network_is_lost_and_is_sent_later(
    runs: dict[str, list[Any]], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = runs[""]
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 5)
    monkeypatch.chdir(tmp_path)
    log = tracking.Tracker.log

    def train(out: str, **settings: str) -> list[dict[str, Any]]:
        """The history of a training run, as it stands in history.tsv."""
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
        cli.pretrain(
            folder / "out/volumes",
            "simclr",
            tmp_path / out,
            str(folder / "params.yaml"),
            ["pretrain.epochs=4", *overrides],
        )
        return pd.read_csv(tmp_path / out / "history.tsv", sep="\t")["loss"].tolist()

    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)

        def losing(tracker: tracking.Tracker, values: Any, *, step: int) -> None:
            if step == 2 and not server.lost:
                server.lose(how)
            log(tracker, values, step=step)

        monkeypatch.setattr(tracking.Tracker, "log", losing)
        losses = train("lost")
        wandb.teardown()
    assert "UpsertBucket" in [name for name, _ in server.operations]
    assert losses == train("alone", tracking__mode="disabled")
    weights = [tmp_path / out / "encoder.safetensors" for out in ("lost", "alone")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # as our commands do
    with wandb_server.serve() as later:
        monkeypatch.setenv("WANDB_BASE_URL", later.url)
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--yes"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert later.unknown == []
    steps = [row["_step"] for row in later.history]
    assert steps == list(range(len(steps)))
    assert len(steps) > 6
