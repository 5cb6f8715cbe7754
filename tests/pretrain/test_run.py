from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from neurofoundry.contracts.encoder import check_grid
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import VOLUMES, Volumes, write_volume
from neurofoundry.errors import DataError, UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.selfcheck import check_compiler
from neurofoundry.pretrain import objectives, optimizer, run
from neurofoundry.pretrain.batches import Batches
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.objectives.mae import MaeParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.runtime.code import deciding_code
from neurofoundry.runtime.files import hash_file
from tests.pretrain import stage_process
from tests.pretrain.conftest import (
    CONTRAST,
    GRID,
    SMALL,
    batch_of,
    last_step,
    params_of,
    run_stage,
    wait_for_step,
)
from tests.support.launch_ranks import start_ranks

STILL = {"crop": [1, 1], "stretch": 1, "flip": 0, "rotation": 0}
STILL |= {"gamma": 1, "remap": 0, "bias": 0, "blur": 0, "coarse": 1, "noise": 0}


def scans_of(volumes: Path) -> pd.DataFrame:
    return read_table(volumes / "scans.tsv", VOLUMES)


class TestOutputs:
    def test_the_folder_keeps_its_contract(self, volumes: Path, tmp_path: Path) -> None:
        work = run_stage(volumes, tmp_path / "w", epochs=3, licence="CC0-1.0")
        names = {path.name for path in work.dir.iterdir()}
        assert names == {
            "encoder.safetensors",
            "plan.json",
            "subjects.tsv",
            "images.tsv",
            "history.tsv",
            "probe.tsv",
            "views.png",
            "checkpoint",
        }
        encoder, plan = encoders.load(work.dir)
        check_grid(plan, GRID)
        assert encoder(torch.randn(2, 1, 25, 32, 32)).shape == (2, plan.features)
        assert (plan.method, plan.licence) == ("simclr", "CC0-1.0")
        assert plan.pretraining is not None
        assert plan.pretraining.model_dump() == {
            "data_version": "v1",
            "persons": 12,
            "scans": 14,
            "epochs": 3,
            "seed": 7,
            "sizes": False,
        }
        subjects = pd.read_csv(work.dir / "subjects.tsv", sep="\t")["person"].tolist()
        assert subjects == [f"heads/{person:02d}" for person in range(12)]
        history = pd.read_csv(work.dir / "history.tsv", sep="\t")
        assert list(history) == [
            "epoch",
            "step",
            "loss",
            "learning_rate",
            "alignment",
            "uniformity",
            "effective_rank",
        ]
        assert history["epoch"].tolist() == [1, 2, 3]
        assert history["step"].tolist() == [3, 6, 9]
        scores = {"age_r2", "sex_auc"}
        assert set(work.summary) == {*list(history)[2:], *scores, "scans", "persons", "epochs"}
        assert work.summary["loss"] == pytest.approx(history["loss"].iloc[-1])

    def test_it_learns_to_tell_persons_apart(self, volumes: Path, tmp_path: Path) -> None:
        light = {**STILL, "crop": [0.9, 1], "rotation": 5, "noise": 0.1}
        work = run_stage(volumes, tmp_path / "w", epochs=20, augment=light)
        history = pd.read_csv(work.dir / "history.tsv", sep="\t")
        guessing = math.log(2 * 4 - 1)
        assert history["loss"].iloc[-1] < 0.5 * guessing
        assert history["effective_rank"].iloc[-1] > 3

    def test_masked_autoencoding_leaves_the_same_files(self, volumes: Path, tmp_path: Path) -> None:
        values = {"methods": ["simclr", "mae"], "mae": {"mask": 0.5, "patch_mm": 12}}
        work = run_stage(volumes, tmp_path / "w", method="mae", epochs=2, **values)
        assert {"encoder.safetensors", "plan.json", "subjects.tsv", "views.png"} <= {
            path.name for path in work.dir.iterdir()
        }
        history = pd.read_csv(work.dir / "history.tsv", sep="\t")
        assert list(history)[2:] == ["loss", "learning_rate", "explained"]
        encoder, plan = encoders.load(work.dir)
        assert (plan.name, plan.method) == ("mae", "mae")
        assert encoder(torch.randn(2, 1, 25, 32, 32)).shape == (2, plan.features)

    def test_a_method_depends_on_nothing_of_the_others(self) -> None:
        both = params_of(methods=["simclr", "mae"], mae={"mask": 0.5})
        assert both.read_by("simclr") == params_of().read_by("simclr")
        alone = PretrainParams.model_validate({**SMALL, "methods": ["mae"], "mae": {"mask": 0.5}})
        assert both.read_by("mae") == alone.read_by("mae")
        other = alone.model_copy(update={"mae": MaeParams(mask=0.4)})
        assert both.read_by("mae") != other.read_by("mae")
        assert "simclr" not in both.read_by("mae")
        assert both.read_by("simclr")["batch_size"] == 4

    def test_the_seed_decides_the_weights(self, volumes: Path, tmp_path: Path) -> None:
        hashes = []
        for name in "ab":
            torch.manual_seed(ord(name))
            work = run_stage(volumes, tmp_path / name, epochs=1)
            hashes.append(hash_file(work.dir / "encoder.safetensors"))
        assert hashes[0] == hashes[1]

    def test_bf16_trains_too(self, volumes: Path, tmp_path: Path) -> None:
        # Dilated, as some CPUs are refused bf16 on maps of 2 voxels.
        encoder = SMALL["encoder"] | {"dilated": True}
        work = run_stage(volumes, tmp_path / "w", epochs=1, precision="bf16", encoder=encoder)
        assert math.isfinite(work.summary["loss"])


class TestData:
    def test_only_usable_scans_of_the_splits_are_seen(self, volumes: Path) -> None:
        chosen = run.select_scans(scans_of(volumes), params_of())
        assert len(chosen) == 14
        assert set(chosen["split"]) == {"pretrain"}
        assert "sub-00_ses-0" not in set(chosen["scan_id"])
        chosen = run.select_scans(scans_of(volumes), params_of(splits=["pretrain", "train"]))
        assert len(chosen) == 24

    @pytest.mark.parametrize("split", ["val", "test", "ood"])
    def test_held_out_splits_are_refused(self, split: str) -> None:
        with pytest.raises(ValidationError, match="'pretrain' or 'train'"):
            params_of(splits=["pretrain", split])

    @pytest.mark.parametrize(
        "values",
        [
            {"splits": []},
            {"splits": ["train", "train"]},
            {"epochs": 0},
            {"warmup": 1},
            {"batch_size": 1},
            {"precision": "fp16"},
            {"workers": 4},
            {"temperature": 0.2},
            {"chunk": 0},
            {"mae": {"mask": 0.5}},
            {"simclr": {"compile": True}, "methods": ["mae"]},
            {"mae": {"mask": 1.0}, "methods": ["simclr", "mae"]},
        ],
    )
    def test_impossible_parameters_are_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            params_of(**values)

    def test_an_epoch_sees_a_scan_at_most_once_in_an_order_of_its_own(self, volumes: Path) -> None:
        scans = run.select_scans(scans_of(volumes), params_of())
        batches = Batches(scans, Volumes(volumes), 4, seed=7, ranks=Ranks())
        assert batches.per_epoch == 3
        seen = [list(batch["scan_id"]) for batch, _ in batches.read(0, 9)]
        epochs = [[*seen[step], *seen[step + 1], *seen[step + 2]] for step in (0, 3, 6)]
        assert [len(set(epoch)) for epoch in epochs] == [12, 12, 12]
        assert epochs[0] != epochs[1] != epochs[2]
        assert [list(batch["scan_id"]) for batch, _ in batches.read(5, 9)] == seen[5:]

    def test_the_learning_rate_rises_and_falls(self) -> None:
        params = params_of(learning_rate=0.01, warmup=0.2)
        rates = [optimizer.learning_rate(step, 100, params) for step in range(100)]
        assert 0 < rates[0] < 0.001
        assert rates[:20] == sorted(rates[:20])
        assert rates[20] == max(rates) == 0.01
        assert rates[20:] == sorted(rates[20:], reverse=True)
        assert rates[-1] < 1e-5

    def test_a_constant_learning_rate_stays_after_warm_up(self) -> None:
        params = params_of(learning_rate=0.01, warmup=0.2, schedule="constant")
        rates = [optimizer.learning_rate(step, 10, params) for step in range(10)]
        assert rates[0] < rates[1] < rates[2] == rates[9] == 0.01

    def test_weight_decay_shrinks_kernels_and_spares_biases_and_norms(self) -> None:
        """Where gradients are 0, only decay changes a weight."""
        encoder = encoders.build(params_of().encoder, seed=1)
        before = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
        adamw = optimizer.make_optimizer(encoder, params_of(learning_rate=0.1, weight_decay=0.5))
        for weight in encoder.parameters():
            weight.grad = torch.zeros_like(weight)
        adamw.step()
        one_dimensional = [name for name, weight in before.items() if weight.ndim == 1]
        assert {"bn1.weight", "bn1.bias", "layer2.0.downsample.0.bias"} <= {*one_dimensional}
        for name, weight in encoder.named_parameters():
            factor = 1 if name in one_dimensional else 1 - 0.1 * 0.5
            torch.testing.assert_close(weight.detach(), factor * before[name], msg=name)


class Steep(Objective):
    """A loss of 0 whose slope is infinite: the square root of a weight at 0."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1) + self.weight

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return encoded.sqrt().sum(), {}


class TestFailures:
    def test_fewer_scans_than_a_batch(self, volumes: Path) -> None:
        with pytest.raises(DataError, match=r"14 usable scans.*Lower pretrain\.batch_size \(32\)"):
            run.select_scans(scans_of(volumes), params_of(batch_size=32))

    def test_one_person_only(self, volumes: Path) -> None:
        scans = scans_of(volumes).query("subject == '01'")
        with pytest.raises(DataError, match="all of one person"):
            run.select_scans(scans, params_of(batch_size=2))

    def test_no_scan_at_all(self, volumes: Path) -> None:
        with pytest.raises(DataError, match="0 usable scans"):
            run.select_scans(scans_of(volumes).iloc[:0], params_of())

    def test_an_empty_volume_is_named(self, volumes: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        empty = np.zeros(GRID.shape)
        write_volume(copy / "sub-05_ses-0.nii", empty, empty != 0, GRID)
        with pytest.raises(DataError, match=r"sub-05_ses-0\.nii: no voxel of brain"):
            run_stage(copy, tmp_path / "w", epochs=2)

    def test_a_missing_volume_is_named(self, volumes: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        (copy / "sub-05_ses-0.nii").unlink()
        with pytest.raises(DataError, match=r"sub-05_ses-0\.nii: cannot be read"):
            run_stage(copy, tmp_path / "w", epochs=2)

    def test_a_loss_that_is_no_number_names_the_step_and_the_scans(
        self, volumes: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"in step \d+.*sub-\d\d_ses-.*learning_rate"):
            run_stage(volumes, tmp_path / "w", rate=1e30, epochs=3, warmup=0)
        assert not (tmp_path / "w" / "encoder.safetensors").exists()
        # What the step began with is kept, where no later run goes on from it.
        (left,) = (tmp_path / "w" / "diverged").glob("step-*.pt")
        state = torch.load(left, weights_only=True)
        assert state["step"] == int(left.name[5:14]) > 0
        assert not (tmp_path / "w" / "checkpoint").exists()
        run_stage(volumes, tmp_path / "w", epochs=1)  # of a run that went well, nothing of it is
        assert not (tmp_path / "w" / "diverged").exists()

    def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights(self) -> None:
        objective = Steep()
        adamw = optimizer.make_optimizer(objective, params_of())
        batch = batch_of("ab")
        inputs = torch.zeros(1, 2, 1, 1, 1, 1)
        with pytest.raises(UsageError, match=r"The gradient became inf in step 5.*sub-a, sub-b"):
            optimizer.train_step(
                objective,
                adamw,
                inputs,
                batch,
                params_of(),
                step=4,
                steps=9,
                rate=1,
                ranks=Ranks(),
            )
        assert objective.weight.item() == 0

    def test_a_collapse_is_announced(
        self, volumes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        for path in copy.glob("*.nii"):  # nothing tells one scan from another
            shutil.copy(volumes / "sub-05_ses-0.nii", path)
        run_stage(copy, tmp_path / "w", epochs=2, augment=STILL)
        assert "the embeddings have collapsed (effective rank 1." in caplog.text


RESUMED = {"epochs": 8, "checkpoint_minutes": 0, "probe": {"every": 3}}


@pytest.fixture(scope="module")
def whole(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run that was never stopped leaves."""
    return run_stage(volumes, tmp_path_factory.mktemp("whole"), **RESUMED).dir


class TestResume:
    def test_a_checkpoint_of_other_parameters_data_or_code_is_refused(
        self, volumes: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(whole / "checkpoint", tmp_path / "w" / "checkpoint")
        with pytest.raises(UsageError, match=r"pretrain\.learning_rate was 0\.001, is 0\.002\."):
            run_stage(volumes, tmp_path / "w", **RESUMED, learning_rate=0.002)
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        table = pd.read_csv(copy / "scans.tsv", sep="\t", dtype=str, keep_default_na=False)
        table = table.assign(volume_sha256=f"{99:064x}")
        table.to_csv(copy / "scans.tsv", sep="\t", index=False)
        with pytest.raises(UsageError, match=r"another run: scans was \w+, is \w+\."):
            run_stage(copy, tmp_path / "w", **RESUMED)
        code = {**deciding_code(run.__name__, objectives.MODULES["simclr"]), "nn.seeds": "other"}
        monkeypatch.setattr(run, "deciding_code", lambda *entries: code)
        with pytest.raises(UsageError, match=r"by other code: nn\.seeds changed"):
            run_stage(volumes, tmp_path / "w", **RESUMED)

    def test_what_is_refused_is_not_lost(self, volumes: Path, whole: Path, tmp_path: Path) -> None:
        left = shutil.copytree(whole / "checkpoint", tmp_path / ".out.partial" / "checkpoint")
        (tmp_path / ".out.partial" / ".key").write_text("of the run before")
        before = sorted(left.iterdir())
        values = json.dumps({**SMALL, **CONTRAST, **RESUMED, "learning_rate": 0.002})
        with pytest.raises(UsageError, match=r"pretrain\.learning_rate was 0\.001, is 0\.002\."):
            stage_process.run_stage(volumes, tmp_path / "out", values)
        assert sorted(left.iterdir()) == before

    @staticmethod
    def assert_same(one: Path, other: Path, how: object) -> None:
        for name in (
            "encoder.safetensors",
            "plan.json",
            "subjects.tsv",
            "history.tsv",
            "probe.tsv",
        ):
            assert hash_file(one / name) == hash_file(other / name), (name, how)

    def test_kill_9_changes_no_byte(self, volumes: Path, whole: Path, tmp_path: Path) -> None:
        out = tmp_path / "killed"
        checkpoints = tmp_path / ".killed.partial" / "checkpoint"
        kills = sorted(random.sample(range(1, 18), 2))  # of 24 steps
        # When checkpoints are written may change on the way.
        written = [{}, {"checkpoint_epochs": 1}, {"checkpoint_minutes": 60}]
        for step, when in zip([*kills, None], written, strict=True):
            values = json.dumps({**SMALL, **CONTRAST, **RESUMED, **when})
            (process,) = start_ranks(stage_process.run_stage, volumes, out, values, count=1)
            if step:
                wait_for_step(checkpoints, step, process)
                time.sleep(random.uniform(0, 0.1))
                process.kill()
            process.join(120)
            assert process.exitcode == (-signal.SIGKILL if step else 0)
            assert out.exists() != bool(step)
        self.assert_same(whole, out, kills)

    def test_kill_9_changes_no_byte_of_a_compiled_encoder(
        self, volumes: Path, tmp_path: Path
    ) -> None:
        """Nor would another compilation: tried by hand, and in memory in test_gradients.py."""
        try:
            check_compiler(torch.device("cpu"), setting="simclr.compile")
        except UsageError as error:
            pytest.skip(str(error))
        compiled = {"simclr": {"projection": 16, "compile": True}, "probe": None}
        values = json.dumps({**SMALL, **compiled, "epochs": 2, "checkpoint_minutes": 0})
        whole, out = tmp_path / "whole", tmp_path / "killed"
        checkpoints = tmp_path / ".killed.partial" / "checkpoint"
        for folder, step in ((whole, None), (out, 3), (out, None)):
            arguments = (volumes, folder, values, tmp_path / "cache")
            (process,) = start_ranks(stage_process.run_shallow_stage, *arguments, count=1)
            if step:
                wait_for_step(checkpoints, step, process)
                process.kill()
            process.join(300)
            assert process.exitcode == (-signal.SIGKILL if step else 0)
        for name in ("encoder.safetensors", "history.tsv"):
            assert hash_file(whole / name) == hash_file(out / name), name

    def test_a_truncated_checkpoint_is_skipped(
        self, volumes: Path, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(whole / "checkpoint", tmp_path / "checkpoint")
        _, newest = sorted((tmp_path / "checkpoint").iterdir())
        newest.write_bytes(newest.read_bytes()[:-100])
        work = run_stage(volumes, tmp_path, **RESUMED)
        assert f"{newest.name}: cut short" in caplog.text
        self.assert_same(whole, work.dir, "truncated")

    def test_a_checkpoint_is_left_by_time_and_by_epoch(self, volumes: Path, tmp_path: Path) -> None:
        def left(name: str, **values: object) -> list[int]:
            work = run_stage(volumes, tmp_path / name, epochs=5, probe=None, **values)
            names = sorted(path.name for path in (work.dir / "checkpoint").iterdir())
            return [int(name[5:14]) for name in names]

        assert left("a", checkpoint_minutes=60) == [15]  # the end
        assert left("b", checkpoint_minutes=60, checkpoint_epochs=2) == [12, 15]
        assert left("c", checkpoint_minutes=0) == [14, 15]

    def test_sigterm_leaves_a_checkpoint_to_go_on_from(
        self, volumes: Path, whole: Path, tmp_path: Path
    ) -> None:
        def terminate_in_training() -> None:
            while not (tmp_path / "views.png").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        values = {**RESUMED, "checkpoint_minutes": 60}
        thread = threading.Thread(target=terminate_in_training)
        thread.start()
        with pytest.raises(SystemExit) as ended:
            run_stage(volumes, tmp_path, **values)
        thread.join()
        assert ended.value.code == 143
        step = last_step(tmp_path / "checkpoint")
        assert 0 < step < 24
        self.assert_same(whole, run_stage(volumes, tmp_path, **values).dir, step)


TOGETHER = {"epochs": 4}


class TestRanks:
    @staticmethod
    def start(volumes: Path, out: Path) -> list[BaseProcess]:
        values = json.dumps({**SMALL, **CONTRAST, **TOGETHER, "checkpoint_minutes": 0})
        return start_ranks(stage_process.run_stage, volumes, out, values)

    def test_a_rank_that_dies_ends_the_job_and_the_same_command_ends_in_the_same_bytes(
        self, volumes: Path, tmp_path: Path
    ) -> None:
        whole, out = tmp_path / "whole", tmp_path / "killed"
        for rank in self.start(volumes, whole):
            rank.join(120)
            assert rank.exitcode == 0
        checkpoints = tmp_path / ".killed.partial" / "checkpoint"
        ranks = self.start(volumes, out)
        step = random.randint(1, 6)
        wait_for_step(checkpoints, step, *ranks)
        time.sleep(random.uniform(0, 0.1))
        ranks[0].kill()  # test_launch_ranks.py kills the other
        ranks[1].join(60)  # torchrun would end it at once; it ends by itself too
        assert ranks[1].exitcode not in (0, None)
        assert not out.exists()
        ranks = self.start(volumes, out)
        wait_for_step(checkpoints, 9, *ranks)
        ranks[1].terminate()  # one is asked to end: all do, after the same step
        for rank in ranks:
            rank.join(60)
            assert rank.exitcode == 143
        assert last_step(checkpoints) < 12
        for rank in self.start(volumes, out):
            rank.join(120)
            assert rank.exitcode == 0
        TestResume.assert_same(whole, out, step)
        published = {path.name for path in whole.iterdir()}
        assert published == {path.name for path in out.iterdir()}
        for rank in self.start(volumes, out):  # up to date: none waits for the other
            rank.join(60)
            assert rank.exitcode == 0
