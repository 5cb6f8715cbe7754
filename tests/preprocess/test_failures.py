"""What the stage does when the machine fails: it says so at once, and resumes when it is fixed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neurofoundry.contracts import mni
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import VOLUMES
from neurofoundry.errors import UsageError
from neurofoundry.preprocess import scan, workers
from neurofoundry.preprocess.params import MaskParams
from neurofoundry.preprocess.resample import Image
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.workers import Worker
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import SCHEMA_VERSION
from tests.support.preprocessing import LAYOUT, PARAMS, WriteCohort

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = ["unshare", "--map-root-user", "--mount"]
"""In which anybody may mount a file system, that nobody else sees."""


def may_mount() -> bool:
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def test_a_full_or_read_only_disk_is_said_at_once_and_the_run_resumes_when_it_is_fixed(
    head_files: list[Path], write_cohort: WriteCohort, tmp_path: Path
) -> None:
    if not may_mount():
        pytest.skip("no right to mount a small file system")
    cohort = write_cohort({f"head{n}": head_files[n % 4] for n in range(12)})
    record = {"stage": "ingest", "schema_version": SCHEMA_VERSION, "data_version": "v"}
    write_json(cohort / "stage.json", {**record, "contents": {}, "key": "k"})
    disk, seen = tmp_path / "disk", tmp_path / "seen"
    disk.mkdir()
    seen.mkdir()
    stage_command = ["preprocess", "--params=params.yaml", "--set=tracking.mode=disabled"]
    data = (
        tmp_path / "data"
    )  # leads to the heads, whose paths are relative to /; not above the output
    data.mkdir()
    top = head_files[0].parts[1]
    (data / top).symlink_to(f"/{top}")
    folders = [f"--data={data}", f"--cohort={cohort}", f"--out={disk}/volumes", "--workers=2"]
    command = shlex.join([sys.executable, "-m", "neurofoundry", *stage_command, *folders])
    # Room for the first scans, for none, and for all.
    script = f"""
        mount -t tmpfs -o size=1m none {disk}
        {command} 2> {seen}/full; echo $? > {seen}/full.code
        ls -AR {disk}/.volumes.partial > {seen}/touched
        mount -o remount,ro,size=1m {disk}
        {command} 2> {seen}/locked; echo $? > {seen}/locked.code
        mount -o remount,rw,size=100m {disk}
        {command} 2> {seen}/fixed; echo $? > {seen}/fixed.code
        cp {disk}/volumes/scans.tsv {seen}
    """
    subprocess.run([*NAMESPACE, "sh", "-c", script], cwd=ROOT, check=True)

    words = {name: (seen / name).read_text() for name in ("full", "locked", "fixed")}
    codes = {name: int((seen / f"{name}.code").read_text()) for name in words}
    assert codes == {"full": 2, "locked": 2, "fixed": 0}, words
    assert "No space left on device. Nothing is lost" in words["full"]
    assert f"{disk}/.volumes.partial" in words["full"]
    assert "Read-only file system. Nothing is lost" in words["locked"]
    touched = set(re.findall(r"sub-headshead(\d+)_ses-1_", (seen / "touched").read_text()))
    # Of 12: those that fitted, and those that workers had or were about to get.
    assert 1 <= len(touched) <= 9
    assert read_table(seen / "scans.tsv", VOLUMES)["usable"].tolist() == [True] * 12


def test_a_scan_on_a_failing_disk_stops_the_run_and_is_named(
    template: Template, tmp_path: Path
) -> None:
    # The first page of a process is mapped nowhere: reading it gives an input/output error.
    file = tmp_path / "scan.nii"
    file.symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"scan\.nii cannot be read: Input/output error.*again"):
        preprocess_scans(
            [Job(file, "a", "0" * 64, "k")], out=tmp_path, params=PARAMS, template=template
        )


def test_a_scan_on_a_failing_disk_is_named_by_the_fit_of_nyul_too(
    template: Template, tmp_path: Path
) -> None:
    file = tmp_path / "scan.nii"
    file.symlink_to("/proc/self/mem")
    with pytest.raises(UsageError, match=r"scan\.nii cannot be read: Input/output error.*again"):
        Worker(PARAMS, template).histogram(Job(file, "a", "0" * 64, ""))


def test_a_large_scan_that_has_its_worker_killed_costs_the_others_nothing(
    head_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system does where memory runs out: here, what should find the brain does it."""
    killer = tmp_path / "kill.sh"
    killer.write_text('grep -q . "$0.done" || { echo x > "$0.done"; kill -9 $PPID; }; exit 3')
    (tmp_path / "kill.sh.done").touch()
    command = f"sh {killer} {{input}} {{output}}"
    params = PARAMS.model_copy(update={"mask": MaskParams(command=command)})
    monkeypatch.setattr(workers, "LARGE", 1)
    jobs = [Job(path, path.stem, hash_file(path), path.stem) for path in head_files[:2]]
    (tmp_path / "out").mkdir()
    done = list(
        workers.preprocess_jobs(jobs, out=tmp_path / "out", params=params, template=None, workers=2)
    )
    first, second = (result.reason or "" for _, result, _ in done)
    assert first.startswith("too large: there is not enough memory for its voxels. Downsample it")
    assert "ended with 3" in second
    assert not (
        tmp_path / "out" / LAYOUT.result.format(jobs[0].scan_id)
    ).exists()  # the next run tries again
    killer.with_name("kill.sh.done").write_text("")
    monkeypatch.setattr(workers, "LARGE", 2**26)
    with pytest.raises(UsageError, match=r"A worker process was killed.*fewer --workers"):
        list(
            workers.preprocess_jobs(
                jobs, out=tmp_path / "out", params=params, template=None, workers=2
            )
        )


def test_a_scan_without_memory_for_it_says_so_and_is_tried_again(
    head_files: list[Path],
    template: Template,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read_with_gaps(path: Path) -> tuple[Image, None]:
        raise MemoryError(f"Unable to allocate 4 GiB for {path}")

    monkeypatch.setattr(scan, "read_with_gaps", read_with_gaps)
    job = Job(head_files[0], "a", hash_file(head_files[0]), "k")
    ((result,), _) = Worker(PARAMS, template).preprocess([job], tmp_path)
    assert (result.reason or "").startswith("too large: there is not enough memory for its voxels")
    assert list(tmp_path.iterdir()) == []
    assert "in read_with_gaps" in caplog.text
    assert str(head_files[0]) not in caplog.text + (result.reason or "")


@pytest.mark.parametrize("content", [None, b"", b"not gzip", "cut short"])
def test_a_template_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str | None
) -> None:
    folder = tmp_path / "nilearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "nilearn" / "__init__.py").touch()
    path = folder / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    if content == "cut short":
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4)), path)
        os.truncate(path, 20_000)
    elif content is not None:
        path.write_bytes(content)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nilearn", raising=False)
    mni.load.cache_clear()
    with pytest.raises(UsageError, match=r"The template .*t1_tal.* cannot be read.*nilearn"):
        mni.load("t1")
