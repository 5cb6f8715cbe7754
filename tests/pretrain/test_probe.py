from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import SLOPE, VOLUMES, Volumes
from neurofoundry.errors import UsageError
from neurofoundry.nn import augment, encoders
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.nn.batches import read_batch
from neurofoundry.pretrain import probe
from neurofoundry.pretrain.params import ProbeParams
from neurofoundry.pretrain.probe import Probe
from neurofoundry.runtime.files import hash_file
from tests.pretrain.conftest import GRID, run_stage

CPU = torch.device("cpu")


def probe_of(volumes: Path, **values: object) -> Probe:
    return Probe(
        Volumes(volumes),
        ProbeParams.model_validate(values),
        views=AugmentParams(),
        batch_size=4,
        seed=7,
    )


def encoder_of() -> encoders.Encoder:
    return encoders.build(EncoderParams(stem_stride=2, width=0.125), seed=1)


def edit(volumes: Path, split: str, **columns: object) -> None:
    """Other values in columns of a split's rows."""
    table = read_table(volumes / "scans.tsv", VOLUMES)
    for column, value in columns.items():
        table.loc[table["split"] == split, column] = value
    write_table(table, volumes / "scans.tsv")


class TestEvaluate:
    def test_the_encoder_is_as_before(self, volumes: Path) -> None:
        encoder = encoder_of().train()
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        random = torch.get_rng_state()
        probe_of(volumes).evaluate(encoder, CPU)
        assert all(module.training for module in encoder.modules())
        assert torch.equal(torch.get_rng_state(), random)
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert all(weight.grad is None for weight in encoder.parameters())

    def test_measures_are_those_of_two_views_of_every_val_subject(self, volumes: Path) -> None:
        encoder = encoder_of()
        evaluated = probe_of(volumes)
        values = evaluated.evaluate(encoder, CPU)
        names = list(evaluated.val["scan_id"])
        assert len(names) == 10
        zscores = read_batch(Volumes(volumes), names) * SLOPE
        shape = GRID.shape[::-1]
        units = []
        encoder.eval()
        for view in range(2):
            drawn = augment.draw(
                AugmentParams(), seed=7, epoch=0, scans=names, view=view, shape=shape
            )
            with torch.no_grad():
                units.append(F.normalize(encoder(augment.apply(zscores, drawn)), dim=1).numpy())
        apart = np.square(units[0] - units[1]).sum(1).mean()
        assert values["alignment"] == pytest.approx(apart, rel=1e-4)
        shares = np.linalg.svd(np.concatenate(units), compute_uv=False)
        rank = np.exp(stats.entropy(shares / shares.sum()))
        assert values["effective_rank"] == pytest.approx(rank, rel=1e-3)
        assert list(values)[3:] == ["age_r2", "sex_auc"]
        assert values == evaluated.evaluate(encoder, CPU)

    def test_a_column_that_scans_do_not_have(self, volumes: Path) -> None:
        with pytest.raises(UsageError, match=r"probe\.columns: scans\.tsv has no column smoker"):
            probe_of(volumes, columns={"smoker": "classification"})

    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"age": None}, "0 subjects of val have it, 10 are needed"),
            ({"age": 60.0}, "all subjects of val have the same"),
        ],
    )
    def test_a_column_that_cannot_be_probed_is_left_out_and_said(
        self, volumes: Path, tmp_path: Path, values: dict[str, object], why: str
    ) -> None:
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        edit(copy, "val", **values)
        evaluated = probe_of(copy)
        assert evaluated.gaps == [f"pretrain.probe: age is left out, as {why}."]
        assert evaluated.scores == {"sex_auc"}

    def test_classes_that_only_one_split_has(self) -> None:
        train, val = pd.Series(["a", "b", "c"] * 5), pd.Series(["a", "b"] * 5)
        assert "same classes" in str(probe.gap(train, val, "classification"))
        assert probe.gap(train, train, "classification") is None
        assert "0 subjects of train have it" in str(probe.gap(train, val, "regression"))

    def test_a_subject_is_there_once_and_no_more_are_taken_than_asked(self) -> None:
        rows = [
            {"scan_id": f"sub-{p:02d}_ses-{s}", "person": f"{p:02d}", "split": split}
            for p, split in enumerate(["train"] * 30 + ["val"] * 30)
            for s in range(2)
        ]
        table = pd.DataFrame(rows).assign(usable=True)
        chosen = probe.choose(table, "train", most=12, seed=1)
        assert len(chosen) == chosen["person"].nunique() == 12
        assert set(chosen["split"]) == {"train"}
        assert not chosen.equals(probe.choose(table, "train", most=12, seed=2))
        assert len(probe.choose(table, "val", most=100, seed=1)) == 30


class TestScore:
    """Features that hold the label along one direction, and noise."""

    random = np.random.default_rng(3)
    x, x_val = random.standard_normal((80, 20)), random.standard_normal((60, 20))
    age, age_val = (pd.Series(60 + 8 * each[:, 0] + 2 * each[:, 3]) for each in (x, x_val))

    def test_what_features_hold_is_found(self) -> None:
        assert probe.score(self.x, self.age, self.x_val, self.age_val, "regression") > 0.99
        old, old_val = (
            age.gt(60).map({True: "old", False: "young"}) for age in (self.age, self.age_val)
        )
        assert probe.score(self.x, old, self.x_val, old_val, "classification") > 0.9

    def test_what_they_do_not_hold_is_not(self) -> None:
        noise, noise_val = (
            self.random.standard_normal((80, 20)),
            self.random.standard_normal((60, 20)),
        )
        assert probe.score(noise, self.age, noise_val, self.age_val, "regression") < 0.1

    def test_a_missing_label_takes_no_part(self) -> None:
        holes = self.age.where(np.arange(80) % 4 > 0)
        score = probe.score(self.x, holes, self.x_val, self.age_val, "regression")
        rest = np.arange(80) % 4 > 0
        alone = probe.score(self.x[rest], self.age[rest], self.x_val, self.age_val, "regression")
        assert score == alone

    def test_two_classes_are_the_same_as_one_against_the_other(self) -> None:
        """By ranks: the share of pairs that are in the right order (Mann and Whitney)."""
        labels, labels_val = (
            pd.Series(np.where(age > 60, "b", "a")) for age in (self.age, self.age_val)
        )
        noisy = self.x_val + 2 * self.random.standard_normal(self.x_val.shape)
        area = probe.score(self.x, labels, noisy, labels_val, "classification")
        other = {"a": "b", "b": "a"}
        assert area == pytest.approx(
            probe.score(self.x, labels.map(other), noisy, labels_val.map(other), "classification")
        )
        assert 0.5 < area < 0.95

    def test_each_of_three_classes_against_the_others(self) -> None:
        cut = [0, 55, 65, 200]
        labels, labels_val = (
            pd.Series(pd.cut(age, cut, labels=["a", "b", "c"]).astype(str))
            for age in (self.age, self.age_val)
        )
        assert 0.75 < probe.score(self.x, labels, self.x_val, labels_val, "classification") < 1

    def test_features_that_are_no_numbers(self) -> None:
        broken = self.x.copy()
        broken[3, 4] = np.nan
        assert np.isnan(probe.score(broken, self.age, self.x_val, self.age_val, "regression"))


class TestStage:
    @pytest.fixture(scope="class")
    @staticmethod
    def plain(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("plain")
        return run_stage(volumes, folder, epochs=3, probe={"every": 2}).dir

    def test_it_evaluates_before_training_every_few_epochs_and_at_the_end(
        self, plain: Path
    ) -> None:
        rows = pd.read_csv(plain / "probe.tsv", sep="\t")
        assert rows["epoch"].tolist() == [0, 2, 3]
        assert rows["step"].tolist() == [0, 6, 9]
        measures = ["alignment", "uniformity", "effective_rank", "age_r2", "sex_auc"]
        assert list(rows) == ["epoch", "step", *measures]
        assert rows.notna().all(axis=None)

    def test_the_weights_do_not_notice(self, volumes: Path, plain: Path, tmp_path: Path) -> None:
        work = run_stage(volumes, tmp_path / "w", epochs=3, probe=None)
        for name in ("encoder.safetensors", "history.tsv"):
            assert hash_file(work.dir / name) == hash_file(plain / name)
        assert not (work.dir / "probe.tsv").exists()

    def test_test_and_ood_are_not_opened(self, volumes: Path, plain: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(volumes, tmp_path / "volumes")
        table = read_table(copy / "scans.tsv", VOLUMES)
        for scan_id in table.loc[table["split"].isin(["test", "ood"]), "scan_id"]:
            (copy / f"{scan_id}.nii").write_bytes(b"no volume")
        for split in ("test", "ood"):
            edit(copy, split, age=1.0, sex=None)
        work = run_stage(copy, tmp_path / "w", epochs=3, probe={"every": 2})
        assert hash_file(work.dir / "probe.tsv") == hash_file(plain / "probe.tsv")
        edit(copy, "val", age=table.loc[table["split"] == "val", "age"].to_numpy()[::-1])
        work = run_stage(copy, tmp_path / "v", epochs=3, probe={"every": 2})
        assert hash_file(work.dir / "probe.tsv") != hash_file(plain / "probe.tsv")
        assert hash_file(work.dir / "encoder.safetensors") == hash_file(
            plain / "encoder.safetensors"
        )
