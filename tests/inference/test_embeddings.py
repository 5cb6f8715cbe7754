from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurofoundry import load_encoder
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES
from neurofoundry.errors import DataError, UsageError
from neurofoundry.inference import embeddings
from neurofoundry.inference.embeddings import embed, open_table
from neurofoundry.ingest.pseudonyms import KEY
from neurofoundry.preprocess import template
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import QualityParams
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.runtime.files import hash_file, write_json
from tests.support import tiny
from tests.support.dicom_files import IDENTIFYING, hospital
from tests.support.inference import RECIPE, write_encoder


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


def features(table: pd.DataFrame) -> np.ndarray:
    return table.filter(regex=r"^f\d{4}$").to_numpy(np.float32)


@pytest.fixture(scope="module")
def embedded(raw: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "table.tsv"
    embed([raw], weights=weights, out=out, workers=2)
    return out


class TestRawScans:
    def test_features_are_those_of_preprocess_and_the_encoder(
        self, embedded: Path, raw: Path, weights: Path, tmp_path: Path
    ) -> None:
        table = read(embedded).set_index("scan")
        encoder = load_encoder(weights)
        for name in ("first.nii.gz", "later/second.nii"):
            preprocess_scans(
                [Job(raw / name, "x", hash_file(raw / name), key="")],
                out=tmp_path,
                params=RECIPE,
                template=template.build(RECIPE.registration_spacing),
            )
            expected = encoder(tmp_path / Layout.of(RECIPE).volume.format("x"))[0].numpy()
            np.testing.assert_allclose(features(table.loc[[name]])[0], expected, rtol=1e-4)
            assert table.loc[name, "usable"]
            assert table.loc[name, "sha256"] == hash_file(raw / name)

    def test_a_bad_scan_is_a_row_with_its_reason(self, embedded: Path) -> None:
        table = read(embedded).set_index("scan")
        assert len(table) == 3
        assert table.loc["torn.nii.gz", "reason"].startswith("cut short")
        assert not table.loc["torn.nii.gz", "usable"]
        assert np.isnan(features(table.loc[["torn.nii.gz"]])).all()

    def test_it_is_judged_under_the_bounds_of_the_weights(self, raw: Path, tmp_path: Path) -> None:
        strict = QualityParams.model_validate({"template_correlation": {"min": 0.999}})
        recipe = RECIPE.model_copy(update={"quality": strict})
        weights = write_encoder(tmp_path / "strict", recipe=recipe)
        one = raw / "first.nii.gz"
        embed([one], weights=weights, out=tmp_path / "out.tsv", workers=1)
        (row,) = read(tmp_path / "out.tsv").to_dict("records")
        assert not row["usable"]
        assert "expected at least 0.999" in row["reason"]
        assert np.isfinite(row["f0000"])

    def test_weights_with_a_template_of_their_own_need_it(
        self, raw: Path, embedded: Path, weights: Path, tmp_path: Path
    ) -> None:
        t1, grey, white = (template.load(name) for name in ("t1", "gm", "wm"))
        folder = tmp_path / "template"
        folder.mkdir()
        for name, values in zip(
            template.FILES, (t1.values, t1.values > 0, grey.values, white.values), strict=True
        ):
            nib.save(nib.Nifti1Image(values.astype(np.float32), t1.affine), folder / name)
        recipe = RECIPE.model_dump(mode="json", exclude={"outliers", "overrides", "template"})
        own = write_encoder(tmp_path / "own", recipe=recipe | template.fingerprint(folder))
        one = raw / "first.nii.gz"
        with pytest.raises(UsageError, match=r"than the one that comes with nilearn.*--template"):
            embed([one], weights=own, out=tmp_path / "out.tsv", workers=1)
        with pytest.raises(UsageError, match=r"--template: .*comes with nilearn. Leave it out"):
            embed([one], weights=weights, out=tmp_path / "out.tsv", workers=1, template=folder)
        embed([one], weights=own, out=tmp_path / "out.tsv", workers=1, template=folder)
        # Its maps are nilearn's.
        expected = read(embedded).set_index("scan").loc[["first.nii.gz"]]
        np.testing.assert_array_equal(features(read(tmp_path / "out.tsv")), features(expected))
        (folder / "wm.nii.gz").unlink()
        with pytest.raises(UsageError, match=r"wm\.nii\.gz cannot be read"):
            embed([one], weights=own, out=tmp_path / "out.tsv", workers=1, template=folder)

    def test_what_shows_no_head_is_a_row_with_its_reason(
        self, weights: Path, tmp_path: Path
    ) -> None:
        noise = np.random.default_rng(0).random((70, 70, 70), dtype=np.float32)
        nib.save(nib.Nifti1Image(noise, np.diag([3.0, 3, 3, 1])), tmp_path / "noise.nii")
        embed([tmp_path / "noise.nii"], weights=weights, out=tmp_path / "out.tsv", workers=1)
        (row,) = read(tmp_path / "out.tsv").to_dict("records")
        assert not row["usable"]
        assert row["reason"]

    def test_nothing_is_left_beside_the_table(self, embedded: Path) -> None:
        assert [path.name for path in embedded.parent.iterdir()] == ["table.tsv"]

    def test_bids_is_read_as_ingest_reads_it(
        self, raw: Path, weights: Path, tmp_path: Path
    ) -> None:
        for session in ("1", "2"):
            folder = tmp_path / f"bids/sub-01/ses-{session}/anat"
            folder.mkdir(parents=True)
            shutil.copy(raw / "first.nii.gz", folder / f"sub-01_ses-{session}_T1w.nii.gz")
        embed([tmp_path / "bids"], weights=weights, out=tmp_path / "out.tsv", workers=1)
        table = read(tmp_path / "out.tsv")
        assert table["scan_id"].tolist() == ["data_sub-01_ses-1", "data_sub-01_ses-2"]
        assert np.array_equal(features(table)[0], features(table)[1])

    def test_dicom_is_known_by_pseudonyms_alone(
        self, weights: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv(KEY, "a secret of the hospital")
        hospital(tmp_path / "data")
        embed([tmp_path / "data"], weights=weights, out=tmp_path / "out.tsv", workers=1)
        table = read(tmp_path / "out.tsv")
        assert table["scan"].str.contains("series-1").any()
        assert table["reason"].notna().all()  # cubes of 40 slices, a localizer, a T2
        assert table["sha256"].notna().sum() == 3
        text = (tmp_path / "out.tsv").read_text().lower()
        assert not [word for word in IDENTIFYING if word in text]

    def test_parquet_holds_what_the_table_holds(
        self, embedded: Path, raw: Path, weights: Path, tmp_path: Path
    ) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is optional")
        embed([raw], weights=weights, out=tmp_path / "table.parquet", workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]
        found, expected = parquet.read_table(tmp_path / "table.parquet"), read(embedded)
        assert found.column_names == list(expected)
        assert found["usable"].to_pylist() == expected["usable"].tolist()
        assert [reason is None for reason in found["reason"].to_pylist()] == [True, True, False]
        values = np.stack([found[name].to_numpy() for name in expected.filter(regex=r"^f\d")], 1)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, features(expected), rtol=1e-5)


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_a_table_of_either_kind_holds_no_formula(suffix: str, tmp_path: Path) -> None:
    """Spreadsheets open both."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="the extra 'parquet' is optional")
    out = tmp_path / f"table.{suffix}"
    with open_table(out) as (_, write):
        write(pd.DataFrame({"scan": ["=1+1", None], "=x": [-1.5, 2], "usable": [True, False]}))
    table = read(out) if suffix == "tsv" else pd.read_parquet(out)
    assert list(table) == ["scan", "'=x", "usable"]
    assert table["scan"][0] == "'=1+1"
    assert pd.isna(table["scan"][1])
    assert table["'=x"].tolist() == [-1.5, 2]
    assert table["usable"].tolist() == [True, False]


class TestRestart:
    def test_a_killed_run_goes_on_with_the_scans_that_were_in_flight(
        self, embedded: Path, raw: Path, weights: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        out = tmp_path / "table.tsv"
        seen: list[list[str]] = []
        infer = embeddings.infer

        def killed_at_the_second(encoder: Any, scans: list[str], *rest: Any, **size: int) -> Any:
            seen.append(scans)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return infer(encoder, scans, *rest, **size)

        monkeypatch.setattr(embeddings, "infer", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            embed([raw], weights=weights, out=out, workers=1)
        assert not out.exists()
        embed([raw], weights=weights, out=out, workers=1)
        assert len(seen) == 3  # the first scan was not seen again
        assert seen[2] == seen[1] != seen[0]
        assert out.read_text() == embedded.read_text()


class TestVolumes:
    def test_an_output_of_preprocess_is_taken_as_it_is(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        scans = tiny.scans_table(3)
        scans.loc[1, "usable"], scans.loc[1, "reason"] = False, "moved"
        folder = tiny.write_volumes(tmp_path / "volumes", scans)
        encoder = tiny.write_encoder(tmp_path / "encoder")
        with caplog.at_level("INFO", logger="neurofoundry"):
            embed([folder], weights=encoder, out=tmp_path / "out.tsv", workers=1)
        count = len(scans)
        assert caplog.messages[-1].startswith(f"embed: {count}/{count} volumes, ")
        table = read(tmp_path / "out.tsv")
        expected = load_encoder(encoder)([folder / f"{name}.nii" for name in scans["scan_id"]])
        np.testing.assert_allclose(features(table), expected.numpy(), rtol=1e-4, atol=1e-6)
        assert table["usable"].tolist() == scans["usable"].tolist()
        assert table["reason"][1] == "moved"

    def test_of_another_grid_they_are_refused(self, tmp_path: Path, weights: Path) -> None:
        folder = tmp_path / "volumes"
        folder.mkdir()
        write_table(tiny.scans_table(1), folder / "scans.tsv", VOLUMES)
        write_json(folder / "grid.json", {"grid": {"spacing_mm": 3.0}, "params": {}})
        with pytest.raises(UsageError, match="another grid"):
            embed([folder], weights=weights, out=tmp_path / "out.tsv", workers=1)

    @pytest.mark.parametrize("damage", ["gone", "a pipe", "a folder"])
    def test_damaged_ones_are_not_taken_for_raw_scans(
        self, damage: str, tmp_path: Path, weights: Path
    ) -> None:
        folder = tiny.write_volumes(tmp_path / "volumes", tiny.scans_table(2))
        (folder / "grid.json").unlink()
        if damage != "gone":
            (os.mkfifo if damage == "a pipe" else os.mkdir)(folder / "grid.json")
        with pytest.raises(DataError, match=r"grid\.json"):
            embed([folder], weights=weights, out=tmp_path / "out.tsv", workers=1)


class TestRefusal:
    @pytest.mark.parametrize(
        ("out", "message"),
        [("table.csv", r"expected a table, \.tsv or \.parquet"), ("t.parquet", "needs pyarrow")],
    )
    def test_of_a_table_that_cannot_be_written(
        self, raw: Path, weights: Path, tmp_path: Path, monkeypatch: Any, out: str, message: str
    ) -> None:
        monkeypatch.setattr(embeddings, "find_spec", lambda _: None)
        with pytest.raises(UsageError, match=message):
            embed([raw], weights=weights, out=tmp_path / out, workers=1)

    def test_of_weights_that_do_not_say_how_volumes_are_made(
        self, raw: Path, tmp_path: Path
    ) -> None:
        silent = write_encoder(tmp_path / "silent", recipe=None)
        with pytest.raises(UsageError, match="Give --params"):
            embed([raw], weights=silent, out=tmp_path / "out.tsv", workers=1)
        one = raw / "first.nii.gz"
        embed([one], weights=silent, out=tmp_path / "out.tsv", workers=1, params=RECIPE)
        assert read(tmp_path / "out.tsv")["usable"].all()

    def test_of_a_second_recipe(self, raw: Path, weights: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="Leave --params out"):
            embed([raw], weights=weights, out=tmp_path / "x.tsv", workers=1, params=RECIPE)

    def test_of_a_place_without_scans(self, weights: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="No dataset found"):
            embed([tmp_path / "empty"], weights=weights, out=tmp_path / "x.tsv", workers=1)
        with pytest.raises(UsageError, match="no such file"):
            embed([tmp_path / "gone"], weights=weights, out=tmp_path / "x.tsv", workers=1)
