from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest

from neurofoundry.errors import UsageError
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import Atlas, build_atlas
from neurofoundry.phantom.dataset import generate
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, Site, head

PARAMS = PhantomParams(subjects=7, seed=7, two_session_fraction=0.3, travelling_fraction=0.3)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def table(path: Path) -> pandas.DataFrame:
    return pandas.read_csv(path, sep="\t", keep_default_na=False)


def site_of(path: Path) -> Site:
    """The scanner of a file called sub-NNNN_ses-N_…"""
    subject, session = path.name.split("_")[:2]
    person = sample_subject(PARAMS, int(subject.removeprefix("sub-")) - 1)
    return SITES[person.site_of(session.removeprefix("ses-"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    generate(PARAMS, out, 1)
    return out


def test_the_command_makes_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    """Those of the versions in requirements.lock, with and without AVX-512: data.dvc is for all."""
    command = [sys.executable, "-m", "neurofoundry", "phantom", "--subjects=4", "--spacing=5"]
    run = subprocess.run(
        [*command, "--out", tmp_path / "data"], check=True, capture_output=True, text=True
    )
    assert re.search(r"generating heads: (\d+)/\1 heads", run.stderr)
    content = repr(sorted(hashes(tmp_path / "data").items())).encode()
    assert hashlib.sha256(content).hexdigest() == (
        "b7aeb7dba08bc0197fd63cd16ac4b699b03823b703e90e5a63b7d8977a4e126f"
    )


def test_further_contrasts_lie_beside_the_same_t1w(tmp_path: Path) -> None:
    params = PhantomParams(subjects=4, spacing_mm=5, contrasts=("T1w", "FLAIR"))
    generate(params, tmp_path / "data", 1)
    folder = tmp_path / "data/phantom"
    assert "T1w and FLAIR" in (folder / "README").read_text()
    row = table(folder / "derivatives/truth/truth.tsv").iloc[0]
    subject = sample_subject(params, 0)
    assert row["participant_id"] == subject.participant
    for contrast, prefix, zooms in (("T1w", "", (5, 5, 5)), ("FLAIR", "FLAIR_", (5, 5, 10))):
        scan = head(subject, "1", SITES[subject.site], build_atlas(2), 5, contrast)
        (file,) = (folder / "sub-0001/ses-1/anat").glob(f"*_{contrast}.nii.gz")
        image = nibabel.load(file)
        assert image.header.get_zooms() == zooms
        np.testing.assert_array_equal(image.get_fdata(), np.rint(scan.image))
        assert file.with_name(file.name.replace(".nii.gz", ".json")).exists()
        pose = [[row[f"{prefix}pose_{r}{c}"] for c in range(4)] for r in range(4)]
        np.testing.assert_allclose(np.array(pose, float), scan.pose, atol=1e-6)


class TestTree:
    def test_files_are_exactly_those_of_two_bids_datasets(self, data: Path) -> None:
        expected = set()
        for index in range(PARAMS.subjects):
            subject = sample_subject(PARAMS, index)
            dataset = "phantom-external" if subject.site == "dogwood" else "phantom"
            root = f"{dataset}/{subject.participant}"
            expected.add(f"{root}/{subject.participant}_sessions.tsv")
            for session, _ in subject.sessions:
                stem = f"{root}/ses-{session}/anat/{subject.participant}_ses-{session}_T1w"
                expected |= {f"{stem}.nii.gz", f"{stem}.json"}
        for dataset in ("phantom", "phantom-external"):
            expected |= {
                f"{dataset}/{name}"
                for name in (
                    "README",
                    "dataset_description.json",
                    "participants.json",
                    "participants.tsv",
                    "derivatives/truth/dataset_description.json",
                    "derivatives/truth/truth.json",
                    "derivatives/truth/truth.tsv",
                )
            }
        written = set(hashes(data))
        masks = {name for name in written if name.endswith("_mask.nii.gz")}
        assert written - masks == expected
        pattern = (
            r"phantom(-external)?/derivatives/truth/(sub-\d{4})/(ses-\d)/anat/"
            r"\2_\3_label-(lesion|infarct|ventricle)_mask\.nii\.gz"
        )
        assert all(re.fullmatch(pattern, name) for name in masks)
        assert not list(data.parent.glob(".*"))

    def test_descriptions_name_the_dataset_and_its_kind(self, data: Path) -> None:
        for dataset in ("phantom", "phantom-external"):
            raw = json.loads((data / dataset / "dataset_description.json").read_text())
            assert raw["DatasetType"] == "raw"
            derived = data / dataset / "derivatives/truth/dataset_description.json"
            assert json.loads(derived.read_text())["DatasetType"] == "derivative"
            for description in (raw, json.loads(derived.read_text())):
                assert description["Name"]
                assert description["BIDSVersion"]
                assert description["GeneratedBy"][0]["Name"]

    def test_participants_carry_the_labels_of_their_subjects(self, data: Path) -> None:
        rows = pandas.concat(
            [table(data / name / "participants.tsv") for name in ("phantom", "phantom-external")]
        ).sort_values("participant_id")
        assert rows.columns.tolist() == [
            "participant_id",
            "age",
            "sex",
            "site",
            "diagnosis",
            "stroke",
        ]
        subjects = [sample_subject(PARAMS, index) for index in range(PARAMS.subjects)]
        assert rows.values.tolist() == [
            [s.participant, s.age, s.sex, s.site, s.diagnosis, s.stroke] for s in subjects
        ]
        assert set(table(data / "phantom/participants.tsv")["site"]) == {"alder", "birch", "cedar"}
        assert set(table(data / "phantom-external/participants.tsv")["site"]) == {"dogwood"}

    def test_sessions_are_listed_with_their_age_and_site(self, data: Path) -> None:
        twice = [s for s in (sample_subject(PARAMS, i) for i in range(7)) if s.interval]
        assert twice
        for subject in twice:
            path = next(data.rglob(f"{subject.participant}_sessions.tsv"))
            rows = table(path)
            assert rows["session_id"].tolist() == ["ses-1", "ses-2"]
            assert rows["age"].tolist() == [age for _, age in subject.sessions]
            assert rows["site"].tolist() == [subject.site_of("1"), subject.site_of("2")]
        assert {subject.travels_to is None for subject in twice} == {True, False}

    def test_sidecars_describe_the_imaginary_scanner(self, data: Path) -> None:
        for path in data.glob("*/sub-*/ses-*/anat/*_T1w.json"):
            site, sidecar = site_of(path), json.loads(path.read_text())
            assert sidecar["Modality"] == "MR"
            assert sidecar["ManufacturersModelName"] == site.model
            assert sidecar["MagneticFieldStrength"] == site.field_tesla
            for key in ("Manufacturer", "RepetitionTime", "EchoTime", "FlipAngle"):
                assert sidecar[key]
            # Spin echo has no inversion.
            assert ("InversionTime" in sidecar) == (site.name != "birch")

    def test_images_have_plain_whole_headers(self, data: Path) -> None:
        scans = sorted(data.glob("*/sub-*/ses-*/anat/*_T1w.nii.gz"))
        for path in scans:
            image = nibabel.load(path)
            header = image.header
            assert header.get_data_dtype() == np.int16
            assert header.get_xyzt_units()[0] == "mm"
            assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 1)
            np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-3)
            site = site_of(path)
            assert "".join(nibabel.aff2axcodes(image.affine)) == site.axes
            for field in ("descrip", "intent_name", "db_name", "aux_file"):
                assert not header[field].tobytes().strip(b"\0")
            values = np.asarray(image.dataobj)
            assert values.min() >= 0
            assert 100 < values.max() < 32767
            raw = path.read_bytes()
            assert raw[4:8] == b"\0\0\0\0", "a time in the gzip header"
            assert not raw[3] & 8, "a name in the gzip header"
            assert len(gzip.decompress(raw)) == 352 + 2 * values.size

    def test_truth_is_that_of_the_head_on_disk(self, data: Path, atlas: Atlas) -> None:
        truth = table(data / "phantom/derivatives/truth/truth.tsv").set_index(
            ["participant_id", "session_id"]
        )
        subject = sample_subject(PARAMS, 1)
        scan = head(subject, "1", SITES[subject.site], atlas)
        row = truth.loc[(subject.participant, "ses-1")]
        path = next(data.rglob(f"{subject.participant}_ses-1_T1w.nii.gz"))
        stored = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(stored.dataobj), np.rint(scan.image))
        np.testing.assert_allclose(stored.affine, scan.affine, atol=1e-4)
        pose = [[row[f"pose_{r}{c}"] for c in range(4)] for r in range(4)]
        np.testing.assert_allclose(pose, scan.pose, atol=1e-6)
        for name, volume in scan.volumes_ml.items():
            assert row[f"{name}_ml"] == pytest.approx(volume, abs=1e-3)
        scans = list((data / "phantom").glob("sub-*/ses-*/anat/*_T1w.nii.gz"))
        assert len(truth) == len(scans)

    def test_masks_lie_on_the_grid_of_their_scan(self, data: Path) -> None:
        masks = list(data.rglob("*_mask.nii.gz"))
        assert masks
        for path in masks:
            mask = nibabel.load(path)
            scan = nibabel.load(
                next(
                    data.glob("*/sub-*/ses-*/anat/" + path.name.split("_label")[0] + "_T1w.nii.gz")
                )
            )
            assert mask.shape == scan.shape
            np.testing.assert_array_equal(mask.affine, scan.affine)
            assert set(np.unique(np.asarray(mask.dataobj))) <= {0, 1}

    def test_every_scan_has_masks_of_infarct_and_ventricles_as_large_as_the_truth(
        self, data: Path
    ) -> None:
        for dataset in ("phantom", "phantom-external"):
            truth = data / dataset / "derivatives/truth"
            rows = table(truth / "truth.tsv")
            assert ((rows["infarct_ml"] > 0) == (rows["stroke"] == "yes")).all()
            for row in rows.itertuples():
                for label in ("infarct", "ventricle"):
                    name = f"{row.participant_id}_{row.session_id}_label-{label}_mask.nii.gz"
                    mask = nibabel.load(next(truth.rglob(name)))
                    voxel = abs(np.linalg.det(mask.affine[:3, :3])) / 1000
                    volume = np.count_nonzero(mask.dataobj) * voxel
                    # A voxel of the mask is more than half filled.
                    assert volume == pytest.approx(getattr(row, f"{label}_ml"), rel=0.25, abs=0.5)

    def test_lesions_are_masked_where_there_are_any(self, data: Path) -> None:
        lesions = list(data.rglob("*_label-lesion_mask.nii.gz"))
        assert lesions
        for path in lesions:
            lesion, infarct = (
                np.asarray(nibabel.load(path.with_name(name)).dataobj)
                for name in (path.name, path.name.replace("lesion", "infarct"))
            )
            assert lesion.any()
            assert (lesion >= infarct).all()


class TestReproducibility:
    def test_a_killed_run_goes_on_and_gives_the_bytes_of_an_undisturbed_one(
        self, data: Path, tmp_path: Path
    ) -> None:
        """The undisturbed run had one worker, this one two."""
        out = tmp_path / "data"
        program = (
            "from pathlib import Path\n"
            "from neurofoundry.phantom.dataset import generate\n"
            "from neurofoundry.phantom.params import PhantomParams\n"
            "if __name__ == '__main__':\n"
            f"    params = PhantomParams.model_validate_json({PARAMS.model_dump_json()!r})\n"
            f"    generate(params, Path({str(out)!r}), 2)\n"
        )
        script = tmp_path / "run.py"
        script.write_text(program)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        run = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stderr=subprocess.DEVNULL
        )
        records = tmp_path / ".data.partial" / "records"
        deadline = time.monotonic() + 300
        while len(list(records.glob("sub-*.json"))) < 3:
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = [
            int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        ]
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not out.exists()
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.05)
        finished = {path: path.stat().st_mtime_ns for path in records.glob("sub-*.json")}
        images = {
            next((tmp_path / ".data.partial/tree").rglob(f"{path.stem}_T1w.nii.gz"))
            for path in finished
        }
        written = {
            path.relative_to(tmp_path / ".data.partial/tree"): path.stat().st_mtime_ns
            for path in images
        }
        assert len(written) < len(hashes(data))
        generate(PARAMS, out, 2)
        assert hashes(out) == hashes(data)
        assert {path: (out / path).stat().st_mtime_ns for path in written} == written
        assert not (tmp_path / ".data.partial").exists()

    def test_another_seed_gives_other_heads_and_forgets_the_partial_folder(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "data"
        stale = tmp_path / ".data.partial" / "records" / "sub-0001_ses-1.json"
        stale.parent.mkdir(parents=True)
        stale.write_text("{}")
        (tmp_path / ".data.partial" / "key.json").write_text('{"params": "of another run"}')
        params = PhantomParams(subjects=4, seed=8, spacing_mm=4.0)
        self._interrupt_at_the_end(monkeypatch, out, lambda: generate(params, out, 1))
        with pytest.raises(UsageError, match="holds something else"):
            generate(PARAMS, out, 1)
        generate(params, out, 1)  # it was published: what is left of the work is removed
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        with pytest.raises(UsageError, match="holds something else"):
            generate(params, out, 1)
        name = "phantom/sub-0001/ses-1/anat/sub-0001_ses-1_T1w.nii.gz"
        assert hashes(out)[name] != hashes(data)[name]
        assert nibabel.load(out / name).header.get_zooms() == pytest.approx((4, 4, 4))
        assert len(table(out / "phantom/derivatives/truth/truth.tsv")) >= 3

    @staticmethod
    def _interrupt_at_the_end(
        monkeypatch: pytest.MonkeyPatch, out: Path, run: Callable[[], None]
    ) -> None:
        """Interrupt a run between its last rename and the removal of its folder."""
        remove = shutil.rmtree

        def interrupted(path: Path, **options: bool) -> None:
            if out.exists():
                raise KeyboardInterrupt
            remove(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run()


class TestRefusals:
    def test_a_folder_with_content_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(UsageError, match=r"holds something else \(mine.txt\)"):
            generate(PARAMS, tmp_path, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_file_is_not_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("mine")
        with pytest.raises(UsageError, match="a file, and a folder is written"):
            generate(PARAMS, tmp_path / "data", 1)

    def test_at_least_one_worker_is_needed(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="workers"):
            generate(PARAMS, tmp_path / "data", 0)
