"""Whatever goes wrong with one item is its reason, and never the end of the run."""

from __future__ import annotations

import errno
import os
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurofoundry.errors import DataError, UsageError
from neurofoundry.ingest import delimited
from neurofoundry.ingest.derivatives import why_derivative
from neurofoundry.ingest.dicom_header import read_header
from neurofoundry.ingest.image import inspect_image
from neurofoundry.ingest.listing import is_dicom
from neurofoundry.ingest.scan import UnusableError, attempt, map_in_threads
from tests.support.building import bids, run, write_scan

SECRET = "Mustermann"


def fail(error: Exception) -> str:
    raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError(SECRET), "defect of ingest: KeyError"),
        (MemoryError(SECRET), "defect of ingest: MemoryError"),
        (RecursionError(SECRET), "defect of ingest: RecursionError"),
        (OSError(errno.EIO, SECRET), "unreadable: Input/output error"),
        (PermissionError(errno.EACCES, SECRET), "no permission"),
        (UnusableError("empty file"), "empty file"),
    ],
)
def test_an_unforeseen_error_is_the_reason_of_its_item_and_of_no_other(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    items = [None, error, None]
    results = map_in_threads(
        lambda item: fail(item) if item else "read", items, what="test", unit="items", workers=2
    )
    first, failed, last = [result for _, result in results]
    assert first == last == "read"
    assert isinstance(failed, UnusableError)
    assert str(failed).startswith(reason)
    assert SECRET not in str(failed) + caplog.text
    if "defect" in reason:  # the log says where, though not the message, which may quote a name
        assert "in fail" in caplog.text


@pytest.mark.parametrize("error", [UsageError("no key"), OSError(errno.ENOSPC, "full")])
def test_what_is_no_fault_of_an_item_ends_the_run(error: Exception) -> None:
    with pytest.raises(type(error)):
        attempt(fail, error)


def test_no_name_of_a_file_ends_a_run(tmp_path: Path) -> None:
    """Of a subject whose name has room for no table's, of a pipe, of a sidecar without bottom."""
    data = bids(tmp_path / "data", 3)
    long = "sub-" + "x" * 250  # + _sessions.tsv exceeds what a file system takes
    write_scan(data / long / "anat" / "x_T1w.nii.gz", 8)
    os.mkfifo(data / "sub-01" / "sub-01_sessions.tsv")
    (data / "sub-02/anat/sub-02_T1w.json").write_text("[" * 100_000)
    os.mkfifo(data / "sub-03/anat/sub-03_T1w.json")
    outcome = run(data, tmp_path / "out")
    assert outcome.scans["subject"].tolist() == ["sub-02", "sub-03"]
    assert outcome.excluded[long].startswith("unreadable: File name too long")
    (reason,) = (text for path, text in outcome.excluded.items() if "sub-01" in path)
    assert reason.startswith("unreadable table: not a file")
    assert "sub-02/anat/sub-02_T1w.json\tnot valid JSON" in outcome.notes
    assert "sub-03/anat/sub-03_T1w.json\tnot valid JSON" in outcome.notes


def test_an_image_takes_no_more_memory_than_a_piece_of_it(tmp_path: Path) -> None:
    """A gzip of 60 kB that holds 64 MB; of 4 MB, it would hold 4 GB."""
    image = nib.Nifti1Image(np.zeros((200, 200, 200)), np.diag([1, 1, 1, 1.0]))
    nib.save(image, tmp_path / "bomb.nii.gz")
    tracemalloc.start()
    reason = inspect_image(tmp_path / "bomb.nii.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(reason) == "all zero: every voxel is 0"
    assert peak < 32e6


def test_a_table_of_many_columns_is_read_in_time_that_grows_with_them_alone(tmp_path: Path) -> None:
    """UK Biobank's has 28,000. What is quadratic in 100,000 takes a quarter of an hour."""
    columns = [f"{field}-0.{array}" for field in range(10_000) for array in range(10)]
    cells = "\t".join("" for _ in columns)
    text = "participant_id\tAGE\t" + "\t".join(columns)
    text += "".join(f"\nsub-{n:02d}\t{n + 50}\t{cells}" for n in (1, 2, 3, 3))
    data = bids(tmp_path / "data", 3, text)
    outcome = run(data, tmp_path / "out")
    assert outcome.scans["age"].tolist() == [51, 52, 53]
    (row, *_) = delimited.read(data / "participants.tsv", key="participant_id").rows
    assert (row.cells.find("age"), row.cells["9999-0.9"]) == ("51", "")


def test_files_larger_than_memory_are_not_read(tmp_path: Path) -> None:
    data = bids(tmp_path / "data", 3)
    (data / "phenotype").mkdir()
    ours = ("participants.json", "dataset_description.json", "other.csv", "phenotype/x.tsv")
    for name in (*ours, "sub-01/sub-01_sessions.tsv", "sub-02/anat/sub-02_T1w.json"):
        (data / name).touch()
        os.truncate(data / name, 2**40)  # a terabyte, of which the disk holds nothing
    out = run(data, tmp_path / "out")
    assert out.scans["subject"].tolist() == ["sub-02", "sub-03"]
    (why,) = out.excluded.values()
    assert "unreadable table: 1099.5 GB, which take about" in why
    for name in ("participants.json", "phenotype/x.tsv", "sub-02/anat/sub-02_T1w.json"):
        assert name in out.notes
    os.truncate(data / "participants.tsv", 2**40)
    with pytest.raises(DataError, match="unreadable table"):
        run(data, tmp_path / "none")


def test_numbers_that_no_one_can_have_are_na(tmp_path: Path) -> None:
    """1e999 is infinite, and Python reads no integer of 5000 digits."""
    table = "participant_id\tage\tscore\nsub-01\t1e999\t1e999\nsub-02\t50\t7\nsub-03\t50\t8\n"
    data = bids(tmp_path / "data", 3, table)
    for subject, field in (("sub-01", "9" * 5000), ("sub-02", "1e999")):
        sidecar = data / subject / "anat" / f"{subject}_T1w.json"
        sidecar.write_text(f'{{"MagneticFieldStrength": {field}}}')
    score = {"kind": "regression", "column": "score", "required": False}
    columns = {"score": {"from": ["score"]}}
    scans = run(data, tmp_path / "out", tasks={"score": score}, columns=columns).scans
    assert scans["field_strength"].isna().all()
    assert scans["age"].isna().tolist() == [True, False, False]
    assert pd.to_numeric(scans["score"]).tolist()[1:] == [7, 8]
    assert scans["score"].isna().tolist()[0]


@contextmanager
def no_file_can_be_opened() -> Iterator[None]:
    """As with `ulimit -n`, when a process has as many files open as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: inspect_image(folder / "sub-01/anat/sub-01_T1w.nii.gz"),
        lambda folder: is_dicom(folder / "sub-01/anat/sub-01_T1w.nii.gz"),
        lambda folder: delimited.read(folder / "participants.tsv", key="participant_id"),
        lambda folder: why_derivative(folder),
        lambda folder: read_header(folder / "participants.tsv", folder, b"key"),
    ],
)
def test_what_ails_the_machine_is_no_fault_of_a_scan_nor_of_a_table(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    """Else all that came after would be left out of the cohort, and be listed as unreadable."""
    bids(tmp_path, 1)
    (tmp_path / "dataset_description.json").write_text("{}")
    with no_file_can_be_opened(), pytest.raises(OSError, match="Too many open files"):
        attempt(read, tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, None])
def test_a_description_that_is_no_file_or_has_no_end_says_nothing(
    content: str | None, tmp_path: Path
) -> None:
    description = tmp_path / "dataset_description.json"
    description.write_text(content) if content else os.mkfifo(description)
    assert why_derivative(tmp_path) is None
