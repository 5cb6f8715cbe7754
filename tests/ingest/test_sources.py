from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import sources
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings
from tests.support.building import as_nobody, bids, run, write_scan


def datasets_below(data: Path) -> list[tuple[str, str, str]]:
    datasets = sources.find([], Findings(data))
    return [(dataset.name, dataset.kind, dataset.path) for dataset in datasets]


def test_all_kinds_of_datasets_are_discovered(tmp_path: Path) -> None:
    for name in ("bids-a", "bids-b"):
        bids(tmp_path / name, 1)
    bids(tmp_path / "group" / "inner", 1)
    write_scan(tmp_path / "table" / "x.nii.gz")
    (tmp_path / "table" / "list.csv").write_text("path,subject\nx.nii.gz,1\n")
    (tmp_path / "mri" / "a").mkdir(parents=True)
    (tmp_path / "mri" / "a" / "IM1").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "derivatives" / "sub-01").mkdir(parents=True)
    assert datasets_below(tmp_path) == [
        ("bids-a", "bids", "bids-a"),
        ("bids-b", "bids", "bids-b"),
        ("group/inner", "bids", "group/inner"),
        ("table", "table", "table/list.csv"),
        ("dicom", "dicom", "."),
    ]


def test_the_root_itself_may_be_the_dataset_and_its_name_is_not_its_folder(tmp_path: Path) -> None:
    bids(tmp_path / "here", 2)
    assert datasets_below(tmp_path / "here") == [("data", "bids", ".")]
    assert set(run(tmp_path / "here", tmp_path / "out").scans["dataset"]) == {"data"}


def test_folders_that_are_no_dataset_are_named(tmp_path: Path) -> None:
    bids(tmp_path / "ds", 2)
    (tmp_path / "stuff").mkdir()
    derived = bids(tmp_path / "derived", 1)
    (derived / "dataset_description.json").write_text(json.dumps({"DatasetType": "derivative"}))
    for name in ("a.tsv", "b.tsv"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_text("path\nx.nii.gz\n")
    findings = Findings(tmp_path)
    assert [dataset.name for dataset in sources.find([], findings)] == ["ds"]
    reasons = {path: reason for _, path, reason in findings.excluded}
    assert reasons["stuff"].startswith("not a dataset: expected BIDS (folders sub-*)")
    assert reasons["derived"].startswith("a derivative")
    assert reasons["two"].startswith("several tables: a.tsv, b.tsv")


def test_without_any_dataset_the_error_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "secret name").mkdir()
    (tmp_path / "x.nrrd").touch()
    with pytest.raises(DataError) as error:
        datasets_below(tmp_path)
    for text in ("1 folders and 1 files (.nrrd)", "BIDS", "DICOM", "'path'", "dvc pull"):
        assert text in str(error.value)
    assert "secret" not in str(error.value)
    assert str(tmp_path.parent) not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "x", "kind": "bids", "path": "gone"}, "should lie in 'gone'"),
        ({"name": "x", "kind": "bids", "path": "file.txt"}, "should be a folder; it is a file"),
    ],
)
def test_a_declared_dataset_must_be_there(
    dataset: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(UsageError, match=message):
        sources.find([Dataset.model_validate(dataset)], Findings(tmp_path))


def test_a_missing_data_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data: the data folder does not exist"):
        datasets_below(tmp_path / "data")


def test_declared_datasets_are_read_under_their_names(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "a", 2)
    bids(tmp_path / "data" / "b", 2, seed=1)
    scans = run(
        tmp_path / "data",
        tmp_path / "out",
        datasets=[{"name": "Mine", "kind": "bids", "path": "a"}],
    ).scans
    assert set(scans["dataset"]) == {"Mine"}


def test_a_folder_that_goes_while_it_is_searched_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bids(tmp_path / "data/ds", 2).parent
    (data / "copied-just-now").mkdir()
    listed = Path.iterdir

    def gone(folder: Path) -> Iterator[Path]:
        if folder.name == "copied-just-now":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", gone)
    assert len(run(data, tmp_path / "out").scans) == 2


def test_closed_files_and_folders_are_excluded_and_the_run_goes_on() -> None:
    with as_nobody() as folder:
        ds = bids(folder / "data" / "ds", 5)
        (ds / "sub-02/anat/sub-02_T1w.nii.gz").chmod(0)
        (ds / "sub-03").chmod(0)
        (ds / "sub-04/anat").chmod(0)
        try:
            outcome = run(folder / "data", folder / "out")
        finally:
            (ds / "sub-03").chmod(0o755)
            (ds / "sub-04/anat").chmod(0o755)
        assert outcome.scans["subject"].tolist() == ["sub-01", "sub-05"]
        assert {path: reason.partition(":")[0] for path, reason in outcome.excluded.items()} == {
            "ds/sub-02/anat/sub-02_T1w.nii.gz": "no permission",
            "ds/sub-03": "no permission",
            "ds/sub-04": "no permission",
        }


def test_a_table_without_quite_its_paths_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("filepath,subject\nx.nii.gz,1\n")
    with pytest.raises(DataError, match="Did you mean 'filepath'"):
        datasets_below(tmp_path)
