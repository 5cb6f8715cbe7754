from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from neurofoundry.contracts.volumes import Grid, Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune import explain
from neurofoundry.finetune.network import infer
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.runtime.stage import Shard
from neurofoundry.tasks import Classification, Condition, Regression, Task
from tests.support import tiny
from tests.support.tiny import AGE, DIAGNOSIS

BOTH: dict[str, Any] = {
    **tiny.FINETUNED,
    "epochs": 3,
    "initializations": {
        "scratch": {"encoder": "random", "mode": "finetune"},
        "simclr": {"encoder": "simclr", "mode": "finetune"},
        "probe": {"encoder": "simclr", "mode": "probe"},
    },
}
TASKS = {"diagnosis": DIAGNOSIS, "age": AGE}
UNTRAINED = {"encoder": "random", "mode": "probe"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, volumes: Path, encoder: Path) -> Path:
    """Every task from every initialization, made in one go."""
    return tiny.run(tmp_path_factory.mktemp("models") / "models", volumes, encoder, BOTH, TASKS)


@pytest.fixture
def own_volumes(tmp_path: Path, volumes: Path) -> Path:
    """A copy of the volumes that a test may change."""
    return Path(shutil.copytree(volumes, tmp_path / "volumes"))


def folders(models: Path) -> list[str]:
    return sorted(
        path.parent.relative_to(models).as_posix() for path in models.rglob("predictions.tsv")
    )


def when_made(models: Path) -> dict[str, int]:
    return {name: (models / name / "run.json").stat().st_ino for name in folders(models)}


class TestOutputs:
    def test_every_declared_model_has_its_files_and_its_row(self, models: Path) -> None:
        declared = [f"{task}/{init}/1.0/0" for task in TASKS for init in BOTH["initializations"]]
        assert folders(models) == sorted(declared)
        for name in declared:
            assert sorted(path.name for path in (models / name).iterdir()) == [
                "fitted.tsv",
                "history.tsv",
                "model.safetensors",
                "plan.json",
                "predictions.tsv",
                "run.json",
                "trust.npz",
            ]
        table = pd.read_csv(models / "runs.tsv", sep="\t", dtype=str)
        assert list(table) == ["task", "init", "fraction", "seed", "status", "reason"]
        assert table[["task", "init", "fraction", "seed"]].agg("/".join, axis=1).to_list() == (
            declared
        )
        assert set(table["status"]) == {"done"}
        summary = json.loads((models / "stage.json").read_text())["summary"]
        assert summary == {"runs": 6, "done": 6, "not_estimable": 0}

    def test_predictions_hold_every_labelled_scan_of_the_splits_held_out(
        self, models: Path
    ) -> None:
        scans = tiny.scans_table()
        held_out = scans[scans["split"].isin(["val", "test", "ood"])]
        for name in folders(models):
            table = tiny.predictions(models / name)
            described = ["scan_id", "dataset", "person", "session", "split", "site"]
            pd.testing.assert_frame_equal(
                table[described], held_out[described].reset_index(drop=True), check_dtype=False
            )
            column = name.split("/")[0]
            assert table["label"].to_list() == held_out[column].to_list()
            if column == "age":
                assert list(table)[7:] == ["output"]
            else:
                assert list(table)[7:] == ["p_CN", "p_AD"]
                np.testing.assert_allclose(table["p_CN"] + table["p_AD"], 1, atol=1e-9)

    @pytest.mark.parametrize("init", ["scratch", "probe"])
    @pytest.mark.parametrize("task", [DIAGNOSIS, AGE], ids=["diagnosis", "age"])
    def test_what_a_model_says_of_the_scans_it_learned_from_is_kept(
        self, models: Path, volumes: Path, encoder: Path, task: Task, init: str
    ) -> None:
        folder = models / f"{task.column}/{init}/1.0/0"
        table = pd.read_csv(folder / "fitted.tsv", sep="\t").set_index("scan_id")
        scans = tiny.scans_table().set_index("scan_id")
        assert sorted(table.index) == sorted(scans.index[scans["split"] == "train"])
        assert (table["label"] == scans.loc[table.index, task.column]).all()
        read = partial(read_batch, Volumes(volumes))
        outputs = infer(tiny.read_model(folder, encoder, task), table.index, read)
        expected = outputs[:, 0] if task is AGE else outputs.softmax(1)[:, 1]
        written = table["output" if task is AGE else "p_AD"]
        np.testing.assert_allclose(written, expected.numpy(), rtol=1e-3, atol=1e-3)

    def test_fine_tuning_finds_what_was_planted(self, models: Path) -> None:
        for init in ("scratch", "simclr"):
            table = tiny.predictions(models / f"diagnosis/{init}/1.0/0")
            table = table[table["split"] == "test"]
            assert roc_auc_score(table["label"] == "AD", table["p_AD"]) > 0.9

    def test_features_are_what_each_frozen_encoder_says_of_the_scans(
        self, models: Path, volumes: Path, encoder: Path
    ) -> None:
        assert sorted(path.name for path in (models / "features").iterdir()) == [
            *("random.npz", "simclr.npz")
        ]
        with np.load(models / "features/simclr.npz", allow_pickle=False) as content:
            scan_ids, features = list(content["scan_id"]), content["features"]
        scans = pd.read_csv(volumes / "scans.tsv", sep="\t").set_index("scan_id")
        assert set(scans.loc[scan_ids, "split"]) == {"train", "val", "test", "ood"}
        network = encoders.load(encoder)[0]
        read = partial(read_batch, Volumes(volumes))
        assert np.allclose(features, infer(network, scan_ids, read).numpy(), atol=1e-4)

    def test_labels_of_no_meaning_teach_nothing(
        self, tmp_path: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        persons = scans["person"].drop_duplicates()
        coins = pd.Series(np.random.default_rng(5).permutation(len(persons)) % 2, index=persons)
        scans["diagnosis"] = scans["person"].map(coins).map({0: "CN", 1: "AD"})
        tiny.with_scans(own_volumes, scans)
        models = tiny.run(tmp_path / "m", own_volumes, encoder, BOTH, {"diagnosis": DIAGNOSIS})
        for name in folders(models):
            table = tiny.predictions(models / name)
            table = table[table["split"].isin(["test", "ood"])]
            assert 0.2 < roc_auc_score(table["label"] == "AD", table["p_AD"]) < 0.8

    def test_the_plan_says_where_the_model_comes_from(self, models: Path) -> None:
        plan = json.loads((models / "age/scratch/1.0/0/plan.json").read_text())
        assert plan["task"]["name"] == "age"
        assert plan["initialization"] == {"name": "scratch", **BOTH["initializations"]["scratch"]}
        assert plan["encoder"]["method"] == "random"
        plan = json.loads((models / "age/probe/1.0/0/plan.json").read_text())
        assert plan["encoder"]["method"] == "simclr"
        assert plan["encoder"]["grid"]["spacing_mm"] == 6


class TestTuning:
    def test_the_learning_rate_with_the_least_loss_on_val_is_kept(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        params = BOTH | {"epochs": 2, "learning_rate": [1e-9, 3e-3, 1e-8]}
        models = tiny.run(tmp_path / "m", volumes, encoder, params, {"age": AGE})
        history = pd.read_csv(models / "age/scratch/1.0/0/history.tsv", sep="\t")
        assert list(history["learning_rate"]) == [1e-9, 1e-9, 3e-3, 3e-3, 1e-8, 1e-8]
        assert history.loc[history["val_loss"].idxmin(), "learning_rate"] == 3e-3
        alone = tiny.run(
            tmp_path / "alone", volumes, encoder, params | {"learning_rate": 3e-3}, {"age": AGE}
        )
        for name in ("age/scratch/1.0/0", "age/simclr/1.0/0"):
            one, other = (tiny.predictions(folder / name) for folder in (models, alone))
            pd.testing.assert_frame_equal(one, other)

    def test_sfcn_learns_by_its_own_rate_and_no_other_model_is_made_again(
        self, tmp_path: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        made = Path(shutil.copytree(models, tmp_path / "models", copy_function=os.link))
        before = when_made(made)
        sfcn = {"encoder": "sfcn", "mode": "finetune", "learning_rate": 1e-2, "epochs": 8}
        params = BOTH | {"initializations": BOTH["initializations"] | {"sfcn": sfcn}}
        tiny.run(made, volumes, encoder, params, TASKS)
        after = when_made(made)
        assert {name: after[name] for name in before} == before
        plan = json.loads((made / "diagnosis/sfcn/1.0/0/plan.json").read_text())
        assert plan["encoder"]["encoder"]["architecture"] == "sfcn"
        table = tiny.predictions(made / "diagnosis/sfcn/1.0/0")
        table = table[table["split"] == "test"]
        assert roc_auc_score(table["label"] == "AD", table["p_AD"]) > 0.9

    def test_a_head_that_starts_from_the_probe_starts_where_the_probe_ended(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        lpft = {
            **{"encoder": "simclr", "mode": "finetune", "head": "probe", "freeze": 5},
            **{"epochs": 1, "learning_rate": 1e-9},
        }
        inits = {"lpft": lpft, "probe": BOTH["initializations"]["probe"]}
        models = tiny.run(
            tmp_path / "m", volumes, encoder, BOTH | {"initializations": inits}, TASKS
        )
        for task, column in (("age", "output"), ("diagnosis", "p_AD")):
            one, other = (
                tiny.predictions(models / f"{task}/{init}/1.0/0")[column] for init in inits
            )
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


class TestWhatIsLearnedFrom:
    def test_volumes_of_test_and_ood_change_no_weight(
        self, tmp_path: Path, models: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        one = own_volumes / f"{scans['scan_id'][0]}.nii"
        for scan_id in scans["scan_id"][scans["split"].isin(["test", "ood"])]:
            shutil.copy(one, own_volumes / f"{scan_id}.nii")
        tiny.with_scans(own_volumes, scans)
        changed = tiny.run(tmp_path / "models", own_volumes, encoder, BOTH, TASKS)
        for name in folders(models):
            for file in ("model.safetensors", "history.tsv"):
                assert (models / name / file).read_bytes() == (changed / name / file).read_bytes()
            before, after = tiny.predictions(models / name), tiny.predictions(changed / name)
            val = before["split"] == "val"
            pd.testing.assert_frame_equal(before[val], after[val])
            assert not np.allclose(before[~val].iloc[:, -1], after[~val].iloc[:, -1])

    def test_weights_are_on_disk_before_a_volume_of_test_or_ood_is_opened(
        self, tmp_path: Path, models: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        for scan_id in scans["scan_id"][scans["split"].isin(["test", "ood"])]:
            (own_volumes / f"{scan_id}.nii").write_bytes(b"garbage")
        tiny.with_scans(own_volumes, scans)
        for init in BOTH["initializations"]:
            params = {**BOTH, "initializations": {init: BOTH["initializations"][init]}}
            out = tmp_path / init
            with pytest.raises(DataError, match="cannot be read"):
                tiny.run(out, own_volumes, encoder, params, {"diagnosis": DIAGNOSIS})
            written = out.with_name(f".{init}.partial") / f"diagnosis/{init}/1.0/0"
            assert (written / "model.safetensors").read_bytes() == (
                models / f"diagnosis/{init}/1.0/0/model.safetensors"
            ).read_bytes()

    def test_unusable_unlabelled_and_ineligible_scans_take_no_part(
        self, tmp_path: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        scans.loc[[0, 20, 40], ["usable", "reason"]] = (False, "too dark")
        scans.loc[[3, 23, 43], "diagnosis"] = None
        scans.loc[[5, 25, 45], "diagnosis"] = "other"
        left_out = (scans.index % 20).isin([0, 3, 5]) & (scans.index < 46) | (scans["age"] < 55)
        for scan_id in scans["scan_id"][left_out]:
            (own_volumes / f"{scan_id}.nii").unlink()
        tiny.with_scans(own_volumes, scans)
        task = DIAGNOSIS.model_copy(update={"eligible": {"age": Condition(min=55)}})
        models = tiny.run(tmp_path / "models", own_volumes, encoder, tiny.PROBED, {"d": task})
        held_out = scans[~left_out & scans["split"].isin(["val", "test", "ood"])]
        table = tiny.predictions(models / "d/probe/1.0/0")
        assert table["scan_id"].to_list() == held_out["scan_id"].to_list()

    def test_fractions_and_seeds_choose_the_same_scans_for_all_initializations(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        inits = {name: BOTH["initializations"][name] for name in ("scratch", "probe")}
        params = {**BOTH, "initializations": inits, "epochs": 1}
        params |= {"fractions": [0.5, 0.8], "seeds": [0, 1]}
        models = tiny.run(tmp_path / "models", volumes, encoder, params, {"diagnosis": DIAGNOSIS})
        chosen: dict[str, set[str]] = {}
        for name in folders(models):
            learned = json.loads((models / name / "plan.json").read_text())["learned_from"]
            chosen.setdefault(name.split("/", 2)[2], set()).add(json.dumps(learned))
        assert [len(subsets) for subsets in chosen.values()] == [1, 1, 1, 1]
        assert len(set.union(*chosen.values())) == 4
        persons = [json.loads(chosen[f"{share}/0"].pop())["persons"] for share in (0.5, 0.8)]
        assert persons == [12, 19]


def test_no_model_depends_on_how_it_is_judged(tmp_path: Path, volumes: Path, encoder: Path) -> None:
    """So a change of the statistics makes no model anew (runtime/code.py)."""
    code = (
        "import sys; from pathlib import Path;"
        "from tests.finetune import test_run; from tests.support import tiny;"
        "out, volumes, encoder = map(Path, sys.argv[1:]);"
        "tiny.run(out, volumes, encoder, test_run.BOTH, test_run.TASKS);"
        "print([name for name in sys.modules if name.startswith('neurofoundry.stats')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (tmp_path / "models", volumes, encoder))],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_progress_ends_at_its_total_with_probes_too(
    tmp_path: Path, volumes: Path, encoder: Path, logged: io.StringIO
) -> None:
    tiny.run(tmp_path / "models", volumes, encoder, BOTH, {"diagnosis": DIAGNOSIS})
    done, total = re.findall(r"finetune: (\d+)/(\d+) epochs", logged.getvalue())[-1]
    assert done == total


class TestResume:
    def test_killed_and_run_again_it_writes_the_same_bytes(
        self, tmp_path: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        out = tmp_path / "models"
        code = (
            "import sys; from pathlib import Path;"
            "from tests.finetune import test_run; from tests.support import tiny;"
            "out, volumes, encoder = map(Path, sys.argv[1:]);"
            "tiny.run(out, volumes, encoder, test_run.BOTH, test_run.TASKS)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(out), str(volumes), str(encoder)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.DEVNULL,
        )
        partial = out.with_name(".models.partial")
        # Two models are whole, and a third is being made.
        while len(list(partial.rglob("run.json"))) < 2 or (
            len(list(partial.rglob("plan.json"))) == len(list(partial.rglob("run.json")))
        ):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        whole = {path: path.stat().st_ino for path in partial.rglob("run.json")}
        assert 2 <= len(whole) < 6
        assert not out.exists()

        tiny.run(out, volumes, encoder, BOTH, TASKS)
        assert tiny.contents(out) == tiny.contents(models)
        for path, inode in whole.items():
            assert (out / path.relative_to(partial)).stat().st_ino == inode

    def test_only_what_changed_is_made_again(
        self, tmp_path: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        out = Path(shutil.copytree(models, tmp_path / "models"))
        before = when_made(out)
        tiny.run(out, volumes, encoder, {**BOTH, "epochs": 2}, TASKS)
        after = when_made(out)
        remade = sorted(name for name in before if after[name] != before[name])
        assert remade == sorted(name for name in before if "probe" not in name)

    def test_shards_of_several_machines_make_what_one_run_makes(
        self,
        tmp_path: Path,
        models: Path,
        volumes: Path,
        encoder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        described: list[str] = []

        def watched(module: nn.Module, scan_ids: Iterable[str], *rest: Any, **more: Any) -> Tensor:
            scan_ids = list(scan_ids)
            described.extend(scan_ids)
            return infer(module, scan_ids, *rest, **more)

        params = {**BOTH, "initializations": {**BOTH["initializations"], "untrained": UNTRAINED}}
        whole = tiny.run(tmp_path / "whole", volumes, encoder, params, TASKS, reuse=[models])
        monkeypatch.setattr("neurofoundry.finetune.model.infer", watched)
        shards = [
            tiny.run(
                *(tmp_path / f"shard{number}", volumes, encoder, params, TASKS),
                shard=Shard(number, 2),
                reuse=[models],
            )
            for number in (1, 2)
        ]
        rows = [len(pd.read_csv(shard / "runs.tsv", sep="\t")) for shard in shards]
        assert rows == [4, 4]
        # The features of a scan by a frozen encoder are computed once, whatever the number of
        # shards, and not again when they are merged. Those by simclr are known from ``models``.
        features = [sorted(p.name for p in (shard / "features").iterdir()) for shard in shards]
        assert sorted(features) == [["random.npz"], ["simclr.npz"]]
        merged = tiny.run(tmp_path / "models", volumes, encoder, params, TASKS, reuse=shards)
        assert len(described) == len(set(described)) > 0
        assert tiny.contents(merged) == tiny.contents(whole)
        made = [path for shard in shards for path in shard.rglob("model.safetensors")]
        used = merged.rglob("model.safetensors")
        assert {path.stat().st_ino for path in made} == {path.stat().st_ino for path in used}

    def test_more_runs_are_added_to_those_there_are_and_others_vanish(
        self, tmp_path: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        out = Path(shutil.copytree(models, tmp_path / "models"))
        before = when_made(out)
        kept = {"probe": BOTH["initializations"]["probe"]}
        params = {**BOTH, "initializations": kept, "fractions": [0.5, 1.0]}
        tiny.run(out, volumes, encoder, params, {"age": AGE})
        after = when_made(out)
        assert sorted(after) == ["age/probe/0.5/0", "age/probe/1.0/0"]
        assert after["age/probe/1.0/0"] == before["age/probe/1.0/0"]
        assert sorted(path.name for path in out.iterdir()) == [
            *("age", "features", "runs.tsv", "stage.json")
        ]
        # The other initializations started from the untrained encoder.
        assert [path.name for path in (out / "features").iterdir()] == ["simclr.npz"]

    def test_a_model_of_random_weights_does_not_depend_on_pretraining(
        self, tmp_path: Path, models: Path, volumes: Path
    ) -> None:
        out = Path(shutil.copytree(models, tmp_path / "models"))
        before = when_made(out)
        other = tiny.write_encoder(tmp_path / "encoder", seed=2)
        tiny.run(out, volumes, other, BOTH, TASKS)
        after = when_made(out)
        assert {name for name in before if after[name] == before[name]} == {
            "age/scratch/1.0/0",
            "diagnosis/scratch/1.0/0",
        }

    def test_a_changed_task_makes_only_its_models_again(
        self, tmp_path: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        out = Path(shutil.copytree(models, tmp_path / "models"))
        before = when_made(out)
        older = AGE.model_copy(update={"eligible": {"age": Condition(min=60)}})
        tiny.run(out, volumes, encoder, BOTH, {"diagnosis": DIAGNOSIS, "age": older})
        after = when_made(out)
        assert all((after[name] != before[name]) == name.startswith("age") for name in before)

    def test_a_changed_scan_makes_only_its_tasks_again(
        self, tmp_path: Path, models: Path, own_volumes: Path, encoder: Path
    ) -> None:
        out = Path(shutil.copytree(models, tmp_path / "models"))
        before = when_made(out)
        scans = tiny.scans_table()
        scans.loc[0, "diagnosis"] = None
        scans["some_measure"] = 1.0
        tiny.with_scans(own_volumes, scans)
        tiny.run(out, own_volumes, encoder, BOTH, TASKS)
        after = when_made(out)
        assert all((after[name] == before[name]) == name.startswith("age") for name in before)


class TestRefusals:
    def test_an_optional_task_that_cannot_be_served_is_reported(
        self, tmp_path: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        scans["flat"] = np.where(scans["split"] == "train", 3, scans["age"])
        scans.loc[scans["split"] == "ood", "diagnosis"] = "CN"
        tiny.with_scans(own_volumes, scans)
        optional = {"required": False}
        tasks = {
            "diagnosis": DIAGNOSIS.model_copy(update=optional),
            "flat": Regression(column="flat", required=False),
            "gone": Regression(column="gone", required=False),
        }
        params = {**tiny.PROBED, "fractions": [0.02, 1.0]}
        out = tiny.run(tmp_path / "models", own_volumes, encoder, params, tasks)
        table = pd.read_csv(out / "runs.tsv", sep="\t", dtype=str)
        assert set(table["status"]) == {"not estimable"}
        assert table["reason"].to_list() == [
            *["split 'ood' has 0 subjects with diagnosis=AD, 2 are needed"] * 2,
            "fraction 0.02 of split 'train' has 0 subjects, 2 are needed",
            "fraction 1.0 of split 'train' has one value of flat, 3, in all 30 scans",
            *["no dataset has the column 'gone'"] * 2,
        ]
        assert sorted(path.name for path in out.iterdir()) == ["runs.tsv", "stage.json"]

    def test_required_tasks_that_cannot_be_served_are_all_named(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        tasks = {
            "ill": Classification(column="diagnosis", classes=("CN", "FTD")),
            "gone": Regression(column="gone"),
            "small": DIAGNOSIS,
        }
        params = {**BOTH, "fractions": [0.1]}
        with pytest.raises(DataError) as error:
            tiny.run(tmp_path / "models", volumes, encoder, params, tasks)
        message = str(error.value)
        assert "ill: split 'train' has 0 subjects with diagnosis=FTD, 2 are needed" in message
        assert "gone: no dataset has the column 'gone'" in message
        assert "small: fraction 0.1 of split 'train' has 1 subject with diagnosis=" in message
        assert not (tmp_path / "models").exists()

    def test_a_cohort_without_tasks_has_no_models(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        out = tiny.run(tmp_path / "models", volumes, encoder, BOTH, {})
        assert (out / "runs.tsv").read_text() == "task\tinit\tfraction\tseed\tstatus\treason\n"

    def test_someone_pretrained_on_may_not_be_tested(self, tmp_path: Path, volumes: Path) -> None:
        scans = tiny.scans_table()
        person = scans["person"][scans["split"] == "test"].iloc[0]
        encoder = tiny.write_encoder(tmp_path / "encoder", persons=("a/1", person))
        with pytest.raises(DataError, match=f"{person} was pretrained on"):
            tiny.run(tmp_path / "models", volumes, encoder, BOTH, TASKS)

    def test_an_encoder_of_another_grid_is_refused(self, tmp_path: Path, volumes: Path) -> None:
        encoder = tiny.write_encoder(tmp_path / "encoder", grid=Grid(spacing=3.0))
        with pytest.raises(UsageError, match=r"spacing_mm 3\.0 \(volumes: 6\.0\)"):
            tiny.run(tmp_path / "models", volumes, encoder, BOTH, TASKS)

    def test_an_encoder_that_is_not_there_is_named(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        params = {"initializations": {"m": {"encoder": "mae", "mode": "probe"}}}
        with pytest.raises(UsageError, match=r"initializations\.m: no encoder 'mae'; .* simclr"):
            tiny.run(tmp_path / "models", volumes, encoder, params, TASKS)

    def test_wrong_convolutions_are_found_before_anything_is_learned_with_them(
        self, tmp_path: Path, volumes: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = functional.conv3d

        def doubled(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            return right(x, *rest) * (2 if x.dtype == torch.bfloat16 else 1)

        half = {**BOTH, "precision": "bf16"}
        with monkeypatch.context() as elsewhere:
            # This machine's processor may be one that computes wrongly in bf16: fp32 stands for it.
            elsewhere.setattr("neurofoundry.finetune.run.check_convolutions", lambda *_, **__: None)
            elsewhere.setattr(torch, "autocast", lambda *_, **__: nullcontext())
            made = tiny.run(tmp_path / "made", volumes, encoder, half, TASKS)
        monkeypatch.setattr(functional, "conv3d", doubled)
        # A machine that only takes over what others have made may compute as badly as it likes.
        tiny.run(tmp_path / "taken", volumes, encoder, half, TASKS, reuse=[made])
        with pytest.raises(UsageError, match=r"wrong by .* set finetune\.precision to fp32"):
            tiny.run(tmp_path / "models", volumes, encoder, {**BOTH, "precision": "bf16"}, TASKS)
        probes = {"initializations": {"m": {"encoder": "simclr", "mode": "probe"}}}
        tiny.run(
            tmp_path / "models", volumes, encoder, {**probes, "precision": "bf16"}, {"age": AGE}
        )

    def test_a_broken_volume_is_named(
        self, tmp_path: Path, own_volumes: Path, encoder: Path
    ) -> None:
        scans = tiny.scans_table()
        broken = own_volumes / f"{scans['scan_id'][scans['split'] == 'train'].iloc[0]}.nii"
        broken.write_bytes(broken.read_bytes()[:-100])
        with pytest.raises(DataError, match=rf"{broken.name} has changed"):
            tiny.run(tmp_path / "models", own_volumes, encoder, BOTH, TASKS)


EXPLAIN = {"initializations": ["simclr", "probe"], "scans": 4, "steps": 4}


class TestExplanations:
    @pytest.fixture(scope="class")
    def explained(
        self, tmp_path_factory: pytest.TempPathFactory, models: Path, volumes: Path, encoder: Path
    ) -> Path:
        out = Path(shutil.copytree(models, tmp_path_factory.mktemp("explained") / "models"))
        return tiny.run(out, volumes, encoder, {**BOTH, "explain": EXPLAIN}, TASKS)

    def test_they_are_of_the_models_that_are_named_and_change_none(
        self, explained: Path, models: Path
    ) -> None:
        before, after = tiny.contents(models), tiny.contents(explained)
        added = [
            f"{task}/{init}/1.0/0/explanation.npz" for task in TASKS for init in ("simclr", "probe")
        ]
        assert sorted(after.keys() - before.keys()) == sorted(added)
        assert {name: after[name] for name in before} == before
        contents = json.loads((explained / "stage.json").read_text())["contents"]
        assert set(added) < set(contents)

    @pytest.mark.parametrize("init", ["simclr", "probe"])
    def test_a_map_is_that_of_the_weights_on_disk_for_a_test_scan(
        self, explained: Path, volumes: Path, encoder: Path, init: str
    ) -> None:
        folder = explained / f"diagnosis/{init}/1.0/0"
        predictions = tiny.predictions(folder).set_index("scan_id")
        with np.load(folder / "explanation.npz") as content:
            rows = predictions.loc[content["scan_id"]]
            maps, spacing, answers = content["maps"], content["spacing"], content["answer"]
        assert set(rows["split"]) == {"test"}
        assert rows["label"].to_list() == ["CN", "AD", "CN", "AD"]
        assert rows["person"].is_unique
        odds = np.log(rows["p_AD"] / rows["p_CN"])
        np.testing.assert_allclose(answers, odds, rtol=1e-3, atol=1e-3)
        assert maps.shape == (4, *Grid(spacing=float(spacing)).shape)
        network = tiny.read_model(folder, encoder, DIAGNOSIS)
        scan = read_batch(Volumes(volumes), [rows.index[1]]).float() * 0.001
        voxels = explain.integrated_gradients(
            lambda v: network(v)[:, 1] - network(v)[:, 0], scan, explain.flat(scan), 4
        )
        expected = explain.block_sums(voxels[0, 0].numpy(), tiny.GRID)
        np.testing.assert_allclose(maps[1], expected, rtol=1e-3, atol=1e-3 * abs(expected).max())

    def test_shards_make_the_same_and_what_is_there_is_not_made_again(
        self, tmp_path: Path, explained: Path, models: Path, volumes: Path, encoder: Path
    ) -> None:
        params = {**BOTH, "explain": EXPLAIN}
        shards = [
            tiny.run(
                *(tmp_path / f"shard{number}", volumes, encoder, params, TASKS),
                shard=Shard(number, 2),
                reuse=[models],
            )
            for number in (1, 2)
        ]
        merged = tiny.run(tmp_path / "models", volumes, encoder, params, TASKS, reuse=shards)
        assert tiny.contents(merged) == tiny.contents(explained)
        made = [path for shard in shards for path in shard.rglob("explanation.npz")]
        used = merged.rglob("explanation.npz")
        assert {path.stat().st_ino for path in made} == {path.stat().st_ino for path in used}

    def test_other_steps_and_fewer_models_make_maps_anew_and_no_model(
        self, tmp_path: Path, explained: Path, volumes: Path, encoder: Path
    ) -> None:
        out = Path(shutil.copytree(explained, tmp_path / "models"))
        before = when_made(out)
        maps = {path: path.read_bytes() for path in out.rglob("explanation.npz")}
        params = {**BOTH, "explain": {**EXPLAIN, "steps": 5, "initializations": ["probe"]}}
        tiny.run(out, volumes, encoder, params, TASKS)
        assert when_made(out) == before
        left = {path: path.read_bytes() for path in out.rglob("explanation.npz")}
        assert sorted(left) == sorted(path for path in maps if "probe" in path.parts)
        assert all(left[path] != maps[path] for path in left)
        tiny.run(out, volumes, encoder, BOTH, TASKS)
        assert not list(out.rglob("explanation.npz"))

    def test_only_the_models_of_the_most_labels_are_explained(
        self, tmp_path: Path, volumes: Path, encoder: Path
    ) -> None:
        few = {"initializations": ["probe"], "scans": 2, "steps": 4}
        params = {**tiny.PROBED, "fractions": [1.0, 0.5], "explain": few}
        out = tiny.run(tmp_path / "models", volumes, encoder, params, {"age": AGE})
        explained = [path.relative_to(out).as_posix() for path in out.rglob("explanation.npz")]
        assert explained == ["age/probe/1.0/0/explanation.npz"]
