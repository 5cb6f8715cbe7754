"""Sessions of several contrasts: which images belong together, and what may be missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from neurofoundry.contracts.cohort import read_contrasts
from neurofoundry.ingest.params import IngestParams
from neurofoundry.ingest.pseudonyms import KEY
from tests.ingest.test_table import table
from tests.support.building import ALL_PRETRAIN, bids, head, run, write_scan
from tests.support.dicom_files import hospital

BOTH = ("T1w", "FLAIR")


def flair(root: Path, subject: int, voxels: object = None, name: str = "FLAIR") -> Path:
    stem = f"sub-{subject:02d}"
    seed = 500 + subject if voxels is None else voxels
    return write_scan(root / stem / "anat" / f"{stem}_{name}.nii.gz", seed)  # type: ignore[arg-type]


class TestBids:
    def test_a_session_is_a_row_with_a_path_and_a_hash_of_each_contrast(
        self, tmp_path: Path
    ) -> None:
        data = bids(tmp_path / "data", 3)
        for subject in (1, 2, 3):
            flair(data, subject)
        outcome = run(data, tmp_path / "out", contrasts=BOTH)
        scans = outcome.scans
        assert len(scans) == 3
        assert scans["path"].str.endswith("_T1w.nii.gz").all()
        assert scans["path_FLAIR"].tolist() == [
            f"sub-{n:02d}/anat/sub-{n:02d}_FLAIR.nii.gz" for n in (1, 2, 3)
        ]
        assert scans["sha256_FLAIR"].nunique() == 3
        assert read_contrasts(outcome.folder) == {"T1w": True, "FLAIR": True}
        assert outcome.excluded == {}
        before = outcome.work.data_version
        flair(data, 3, 77)
        assert run(data, tmp_path / "again", contrasts=BOTH).work.data_version != before

    def test_a_session_without_one_is_excluded_unless_it_may_lack_it(self, tmp_path: Path) -> None:
        data = bids(tmp_path / "data", 3)
        flair(data, 1)
        flair(data, 2)
        strict = run(data, tmp_path / "strict", contrasts=BOTH)
        assert strict.scans.index.tolist() == ["data_sub-01_ses-1", "data_sub-02_ses-1"]
        (reason,) = strict.excluded.values()
        assert reason.startswith("no FLAIR: ")
        assert "optional_contrasts: [FLAIR]" in reason
        lenient = run(data, tmp_path / "lenient", contrasts=BOTH, optional_contrasts=["FLAIR"])
        assert lenient.scans["path_FLAIR"].notna().tolist() == [True, True, False]
        assert lenient.excluded == {}
        assert read_contrasts(lenient.folder) == {"T1w": True, "FLAIR": False}

    def test_each_contrast_is_checked_as_t1w_are(self, tmp_path: Path) -> None:
        data = bids(tmp_path / "data", 7)
        flair(data, 1, head(1)[:, :, :4])  # a slab
        flair(data, 2, head(3))  # the T1w of sub-03
        flair(data, 4, head(4))  # their own T1w
        flair(data, 5, name="ce-gadolinium_FLAIR")
        flair(data, 6, name="acq-2d_FLAIR")
        flair(data, 6, 601, name="acq-3d_FLAIR")
        shutil.rmtree(data / "sub-07")
        flair(data, 7)
        outcome = run(data, tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"])
        reasons = {
            f"{path.rpartition('/')[2].partition('.')[0]}": reason.partition(":")[0]
            for path, reason in outcome.excluded.items()
        }
        assert reasons == {
            "sub-01_FLAIR": reasons["sub-01_FLAIR"],
            "sub-02_FLAIR": "duplicate",
            "sub-03_T1w": "duplicate",
            "sub-04_FLAIR": "duplicate",
            "sub-05_ce-gadolinium_FLAIR": "contrast agent",
            "sub-06_acq-2d_FLAIR": "several FLAIR",
            "sub-07_FLAIR": "no T1w",
        }
        assert "field of view" in outcome.excluded["sub-01/anat/sub-01_FLAIR.nii.gz"]
        assert outcome.scans["path_FLAIR"].dropna().tolist() == [
            "sub-06/anat/sub-06_acq-3d_FLAIR.nii.gz"
        ]
        assert "stands in" not in str(outcome.excluded)

    def test_of_a_flair_in_another_session_than_t1w_the_reason_says_what_to_do(
        self, tmp_path: Path
    ) -> None:
        for session, contrast in (("01", "T1w"), ("02", "FLAIR")):
            for number in (1, 2):
                stem = f"sub-0{number}_ses-{session}"
                folder = tmp_path / f"data/sub-0{number}/ses-{session}/anat"
                write_scan(folder / f"{stem}_{contrast}.nii.gz", number + 10 * int(session))
        outcome = run(
            tmp_path / "data", tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"]
        )
        assert len(outcome.scans) == len(outcome.excluded) == 2
        for path, reason in outcome.excluded.items():
            assert path.endswith("ses-02_FLAIR.nii.gz")
            assert "Another session of this person has one" in reason
        # The remedy that it names.
        (tmp_path / "data/cohort.csv").write_text(
            "path,subject,path_FLAIR\n"
            + "".join(
                f"sub-0{n}/ses-01/anat/sub-0{n}_ses-01_T1w.nii.gz,0{n},"
                f"sub-0{n}/ses-02/anat/sub-0{n}_ses-02_FLAIR.nii.gz\n"
                for n in (1, 2)
            )
        )
        joined = run(tmp_path / "data/cohort.csv", tmp_path / "joined", contrasts=BOTH)
        assert joined.scans["path_FLAIR"].notna().tolist() == [True, True]

    def test_t1w_alone_writes_what_it_always_has(self, tmp_path: Path) -> None:
        data = bids(tmp_path / "data", 3)
        alone = run(data, tmp_path / "alone")
        for subject in (1, 2, 3):
            flair(data, subject)
        beside = run(data, tmp_path / "beside")
        assert "path_FLAIR" not in beside.scans
        assert set(beside.excluded.values()) == {"not T1w: its name ends in 'FLAIR'"}
        assert beside.scans.equals(alone.scans)
        assert read_contrasts(beside.folder) == {"T1w": True}

    def test_sidecars_count_for_their_own_contrast(self, tmp_path: Path) -> None:
        data = bids(tmp_path / "data", 2)
        flair(data, 1)
        (data / "FLAIR.json").write_text('{"ContrastBolusAgent": "Gadovist", "Manufacturer": "GE"}')
        (data / "T1w.json").write_text('{"Manufacturer": "Siemens"}')
        outcome = run(data, tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"])
        assert set(outcome.scans["scanner"]) == {"SIEMENS"}
        (reason,) = outcome.excluded.values()
        assert reason.startswith("contrast agent")


class TestTable:
    def test_a_column_names_the_paths_of_a_contrast(self, tmp_path: Path) -> None:
        table(
            tmp_path / "data",
            "path,subject,path_flair\n"
            "images/0.nii.gz,1,images/4.nii.gz\n"
            "images/1.nii.gz,2,n/a\n"
            "images/2.nii.gz,3,images/none.nii.gz\n"
            "images/3.nii.gz,4,images/x_T1w.nii.gz\n",
            images=5,
        )
        write_scan(tmp_path / "data/images/x_T1w.nii.gz", 70)
        outcome = run(
            tmp_path / "data", tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"]
        )
        scans = outcome.scans
        assert scans["subject"].tolist() == ["sub-1", "sub-2", "sub-3", "sub-4"]
        assert scans["path_FLAIR"].dropna().tolist() == ["images/4.nii.gz"]
        line = "cohort.tsv, line {}, FLAIR"
        assert outcome.excluded[line.format(4)].startswith("no such file")
        assert outcome.excluded[line.format(5)] == "not FLAIR: its name says 't1w'"

    @pytest.mark.parametrize("column", ["FLAIR", "flair_path", "T2FLAIR_file", "Path to FLAIR"])
    def test_the_column_may_be_called_otherwise(self, column: str, tmp_path: Path) -> None:
        rows = "images/0.nii.gz,1,images/2.nii.gz\nimages/1.nii.gz,2,images/3.nii.gz\n"
        table(tmp_path / "data", f"path,subject,{column}\n{rows}", images=4)
        outcome = run(
            tmp_path / "data", tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"]
        )
        assert outcome.scans["path_FLAIR"].notna().all() == (column != "Path to FLAIR")
        assert ("no column 'path_FLAIR'" in outcome.notes) == (column == "Path to FLAIR")

    @pytest.mark.parametrize("contrasts", [("T1w",), BOTH])
    def test_rows_of_their_own_say_what_they_show(
        self, contrasts: tuple[str, ...], tmp_path: Path
    ) -> None:
        table(
            tmp_path / "data",
            "path,subject,Sequence\n"
            "images/0.nii.gz,1,T2-FLAIR\n"
            "images/1.nii.gz,1,t1 mprage\n"
            "images/2.nii.gz,2,\n"
            "images/3.nii.gz,2,T2 flair\n"
            "images/4.nii.gz,2,DWI\n"
            "images/5.nii.gz,3,PET/MR\n",
            images=6,
        )
        outcome = run(
            tmp_path / "data",
            tmp_path / "out",
            contrasts=contrasts,
            optional_contrasts=list(contrasts[1:]),
        )
        assert outcome.scans["path"].tolist() == [f"images/{n}.nii.gz" for n in (1, 2, 5)]
        expected = {"not T1w or FLAIR: its row says 'dwi'"}
        if contrasts == BOTH:
            found = outcome.scans["path_FLAIR"].dropna().tolist()
            assert found == ["images/0.nii.gz", "images/3.nii.gz"]
        else:
            expected = {"not T1w: its row says 'FLAIR'", "not T1w: its row says 'dwi'"}
        assert set(outcome.excluded.values()) == expected
        assert "no column" not in outcome.notes

    def test_a_table_without_the_column_is_noted(self, tmp_path: Path) -> None:
        table(tmp_path / "data", "path,subject\nimages/0.nii.gz,1\nimages/1.nii.gz,2\n", images=2)
        outcome = run(
            tmp_path / "data", tmp_path / "out", contrasts=BOTH, optional_contrasts=["FLAIR"]
        )
        assert "no column 'path_FLAIR'" in outcome.notes
        assert outcome.scans["path_FLAIR"].isna().all()


def test_dicom_series_of_a_study_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "an example of a key, 0123456789abcdef")
    outcome = run(
        hospital(tmp_path / "data"),
        tmp_path / "out",
        contrasts=("T1w", "T2w"),
        optional_contrasts=["T2w"],
    )
    scans = outcome.scans
    assert scans["path_T2w"].notna().sum() == 1
    row = scans[scans["path_T2w"].notna()].iloc[0]
    assert row["session"] == "ses-1"
    for name in (row["path"], row["path_T2w"]):
        assert (outcome.folder / name).exists()
    assert len(list((outcome.folder / "nifti").iterdir())) == 4
    assert "not T1w or T2w: a localizer" in outcome.excluded.values()


@pytest.mark.parametrize(
    "wrong",
    [
        {"contrasts": ["FLAIR"]},
        {"contrasts": ["FLAIR", "T1w"]},
        {"contrasts": ["T1w", "FLAIR", "FLAIR"]},
        {"contrasts": ["T1w", "../x"]},
        {"contrasts": []},
        {"optional_contrasts": ["FLAIR"]},
        {"contrasts": ["T1w", "FLAIR"], "optional_contrasts": ["T1w"]},
    ],
)
def test_contrasts_begin_with_t1w_and_the_optional_ones_are_among_them(
    wrong: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="contrasts"):
        IngestParams.model_validate({"splits": ALL_PRETRAIN, **wrong})
