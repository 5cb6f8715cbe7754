from __future__ import annotations

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
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.cohort import ALTERNATES, SCANS
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.preprocess import run
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.intensity import standard_scale
from neurofoundry.preprocess.params import Bounds, PreprocessParams, QualityParams
from neurofoundry.preprocess.quality import BY_SYN, MEASURES
from neurofoundry.preprocess.scan import brain_histogram
from neurofoundry.runtime import progress, stage, verify
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import SCHEMA_VERSION, Shard, Workspace
from neurofoundry.runtime.store import read_circumstances
from neurofoundry.runtime.tracking import Tracker
from tests.support.preprocessing import LAYOUT, PARAMS, WriteCohort

ROOT = Path(__file__).resolve().parents[2]
Preprocess = Callable[..., Workspace]


@pytest.fixture
def preprocess(tmp_path: Path, tracker: Tracker) -> Preprocess:
    def run_it(
        cohort: Path,
        name: str = "work",
        earlier: tuple[Path, ...] = (),
        params: PreprocessParams = PARAMS,
        workers: int = 2,
        shard: str = "1/1",
    ) -> Workspace:
        work = Workspace(
            tmp_path / name, earlier, tracker, data_version="", shard=Shard.parse(shard)
        )
        work.dir.mkdir(exist_ok=True)
        run.preprocess(work, data=Path("/"), cohort=cohort, params=params, workers=workers)
        return work

    return run_it


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(None)  # type: ignore[arg-type]  # preprocess records its summary only


def content(folder: Path) -> dict[str, bytes]:
    """Files and bytes of an output."""
    return {f.name: f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def inodes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.glob("sub-*/ses-1/anat/*")}


def begins(scan_id: str) -> str:
    return f"sub-heads{scan_id}_ses-1"


def path_of(name: str, scan_id: str) -> Path:
    """Where a file of a scan lies."""
    return Path(f"sub-heads{scan_id}/ses-1/anat", name.format(begins(scan_id)))


def test_a_second_run_stands_in_once_and_is_named_in_the_table(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    image = nib.load(head_files[0])
    flipped = tmp_path / "flipped.nii"
    nib.save(nib.Nifti1Image(image.get_fdata()[::-1, :, ::-1].copy(), image.affine), flipped)
    cohort = write_cohort({"head0": flipped, "head1": head_files[1], "head2": head_files[2]})
    second = str(head_files[3].relative_to("/"))
    row = {"scan_id": "head0", "path": second, "sha256": hash_file(head_files[3])}
    write_table(pd.DataFrame([row]), cohort / "alternates.tsv", ALTERNATES)
    work = preprocess(cohort)
    table = read_table(work.dir / "scans.tsv", VOLUMES).set_index("scan_id")
    assert table["usable"].all()
    assert table.loc["head0", ["path", "sha256"]].tolist() == [second, row["sha256"]]
    before = inodes(work.dir)
    assert preprocess(cohort).circumstances["reused"] == 3
    assert inodes(work.dir) == before
    # Bounds repeat no preprocessing, but for scans whose image they choose.
    wider = PARAMS.model_copy(update={"quality": QualityParams(rotation_deg=Bounds(max=180))})
    assert preprocess(cohort, params=wider).circumstances["reused"] == 2


def test_every_scan_has_its_files_and_its_row_and_bad_ones_a_reason(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    cube = rng.random((70, 70, 70), dtype=np.float32) * 0.01
    cube[18:52, 18:52, 18:52] += 1
    bad = {"cube": cube, "noise": rng.random((70, 70, 70), dtype=np.float32)}
    files = {"head0": head_files[0], "head1": head_files[1]}
    for name, values in bad.items():
        files[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1])), files[name])
    files["cut"] = tmp_path / "cut.nii.gz"
    files["cut"].write_bytes(head_files[2].read_bytes()[:30_000])
    files["changed"] = tmp_path / "changed.nii.gz"
    shutil.copy(head_files[2], files["changed"])
    cohort = write_cohort(files)
    files["changed"].write_bytes(files["changed"].read_bytes()[:30_000])

    work = preprocess(cohort)
    table = read_table(work.dir / "scans.tsv", VOLUMES).set_index("scan_id")
    assert list(table.index) == list(files)
    assert table["usable"].tolist() == [True, True, False, False, False, False]
    assert table.loc["head0", "reason"] is np.nan or pd.isna(table.loc["head0", "reason"])
    assert "cannot be read" in table.loc["cut", "reason"]
    assert "changed since ingest" in table.loc["changed", "reason"]
    for name in bad:
        assert ":" in table.loc[name, "reason"]
    measured = table.loc[
        ["head0", "head1"], [name for name in MEASURES if name not in BY_SYN]
    ].astype(float)
    assert np.isfinite(measured.to_numpy()).all()
    assert Volumes(work.dir).grid == PARAMS.grid
    assert Volumes(work.dir).normalization == "zscore"
    for name in ("head0", "head1"):
        for file in LAYOUT.files:
            assert (work.dir / path_of(file, name)).stat().st_size > 0
    page = (work.dir / "qc.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.index("changed since ingest") < page.index('"scan": "head0"')
    assert work.summary["usable"] == 2
    assert work.summary["scans"] == 6


def test_a_log_is_told_how_far_the_run_is_and_how_many_scans_failed(
    head_files: list[Path],
    write_cohort: WriteCohort,
    preprocess: Preprocess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(head_files[2].read_bytes()[:30_000])
    cohort = write_cohort({"head0": head_files[0], "head1": head_files[1], "torn": torn})
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    with caplog.at_level("INFO", logger="neurofoundry"):
        preprocess(cohort, workers=1)
    lines = [line for line in caplog.messages if line.startswith("preprocess: ")]
    assert len(lines) > 3
    assert lines[0] == "preprocess: 0/3 scans"
    assert re.fullmatch(r"preprocess: 3/3 scans, [\d.]+/(s|min), 1 failed", lines[-1])
    caplog.clear()
    (tmp_path / "work" / path_of(LAYOUT.result, "head0")).unlink()
    with caplog.at_level("INFO", logger="neurofoundry"):
        preprocess(cohort, workers=1)
    lines = [line for line in caplog.messages if line.startswith("preprocess: ")]
    assert "preprocess: 2/3 scans, 1 failed" in lines
    assert lines[-1].startswith("preprocess: 3/3 scans, ")
    assert caplog.messages[-1].startswith("scans.tsv and qc.html: done in ")


def test_shards_of_several_machines_make_what_one_run_makes(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess
) -> None:
    cohort = write_cohort({f"head{number}": path for number, path in enumerate(head_files[:3])})
    whole = preprocess(cohort, "whole")
    shards = [preprocess(cohort, f"shard{n}", shard=f"{n}/4") for n in (1, 2, 3, 4)]
    assert [shard.summary["scans"] for shard in shards] == [1, 1, 1, 0]
    merged = preprocess(cohort, "merged", earlier=tuple(shard.dir for shard in shards))
    assert merged.circumstances["reused"] == 3
    assert content(merged.dir) == content(whole.dir)


def test_a_second_run_makes_only_what_is_new_and_forgets_what_left(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess
) -> None:
    heads = {f"head{number}": path for number, path in enumerate(head_files[:3])}
    first = preprocess(write_cohort(heads))
    made = inodes(first.dir)
    before = content(first.dir)

    # Nothing new, in the same folder.
    assert preprocess(write_cohort(heads)).circumstances["reused"] == 3
    assert inodes(first.dir) == made
    assert content(first.dir) == before

    # One left, one came, in another folder beside the published one.
    changed = {"head0": heads["head0"], "head2": heads["head2"], "head3": head_files[3]}
    second = preprocess(write_cohort(changed), "second", earlier=(first.dir,))
    found, second_content = inodes(second.dir), content(second.dir)
    assert second.circumstances["reused"] == 2
    assert {name for name in found if name.startswith(begins("head1"))} == set()
    kept = {name for name in made if name.startswith((begins("head0"), begins("head2")))}
    assert {name for name in found if found[name] in made.values()} == kept
    assert content(first.dir) == before

    # Other parameters: the same work folder, and nothing of it is trusted.
    affine = PARAMS.model_copy(update={"registration": "affine"})
    third = preprocess(write_cohort(changed), "second", earlier=(first.dir,), params=affine)
    assert third.circumstances["reused"] == 0
    for file, scan in (
        (LAYOUT.result, "head0"),
        (LAYOUT.transform, "head2"),
        (LAYOUT.volume, "head3"),
    ):
        name = file.format(begins(scan))
        assert content(third.dir)[name] != second_content[name]
    assert content(first.dir) == before


def test_a_worker_takes_a_batch_whose_size_is_not_part_of_the_key(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    files = {f"head{number}": path for number, path in enumerate(head_files[:3])}
    files["cut"] = tmp_path / "cut.nii.gz"
    files["cut"].write_bytes(head_files[3].read_bytes()[:30_000])
    cohort = write_cohort(files)
    # What params.yaml may say for a GPU only; a CPU does the same.
    batches = PARAMS.model_copy(update={"batch": 3})
    first = preprocess(cohort, params=batches)
    table = read_table(first.dir / "scans.tsv", VOLUMES)
    assert table["scan_id"].tolist() == list(files)
    assert table["usable"].tolist() == [True, True, True, False]
    seconds = first.circumstances["seconds"]
    assert seconds["head0"] == seconds["head1"] == seconds["head2"] > 0
    # A scan of a batch that was lost is done again, and the others are not.
    (first.dir / path_of(LAYOUT.result, "head1")).unlink()
    assert preprocess(cohort).circumstances["reused"] == 3


def test_other_bounds_and_a_decision_by_hand_cost_no_preprocessing(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    cohort = write_cohort({f"head{number}": head_files[number] for number in range(3)})
    preprocess(cohort)
    overrides = tmp_path / "qc_overrides.tsv"
    overrides.write_text("scan_id\tdecision\treason\nhead1\texclude\tghosting\n")
    strict = QualityParams(contrast=Bounds(min=5))
    for update, usable in (
        ({"overrides": overrides}, [True, False, True]),
        ({"quality": strict}, [False, False, False]),
    ):
        params = PARAMS.model_copy(update=update)
        if any(usable):
            assert preprocess(cohort, params=params).circumstances["reused"] == 3
        else:
            with pytest.raises(DataError, match="0 of 3"):
                preprocess(cohort, params=params)
        table = read_table(tmp_path / "work" / "scans.tsv", VOLUMES)
        assert table["usable"].tolist() == usable


def test_nyul_is_fitted_on_the_training_splits_alone(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess
) -> None:
    cohort = write_cohort({f"head{number}": head_files[number] for number in range(4)})
    table = read_table(cohort / "scans.tsv", SCANS)
    params = PARAMS.model_copy(update={"normalization": "nyul"})

    def fit(splits: list[str], kept: int, name: str) -> Workspace:
        write_table(table.assign(split=splits).iloc[:kept], cohort / "scans.tsv", SCANS)
        return preprocess(cohort, name, params=params)

    splits = ["train", "pretrain", "test", "val"]
    first = fit(splits, 4, "first")
    landmarks = json.loads((first.dir / "landmarks.json").read_text())
    brains = [brain_histogram(path, params) for path in head_files[:2]]
    assert landmarks["standard"] == standard_scale([brain for brain in brains if brain])
    assert landmarks["scans"] == 2
    # What an encoder must know of its volumes.
    assert Volumes(first.dir).normalization.startswith(f"nyul at {landmarks['standard'][0]:g} ")
    # Without the scans that are tested, all else is the same, byte for byte.
    fewer = fit(splits, 2, "fewer")
    same = [path_of(LAYOUT.volume, "head0"), *(path_of(each, "head1") for each in LAYOUT.files)]
    for file in ("landmarks.json", *same):
        assert (fewer.dir / file).read_bytes() == (first.dir / file).read_bytes()
    # Another training set is another scale, and another key.
    assert fit(["train", "train", "train", "val"], 4, "first").circumstances["reused"] == 0
    with pytest.raises(DataError, match="none of the 0 scans"):
        fit(["val"] * 4, 4, "none")


def test_a_scan_that_was_gone_is_made_by_the_same_command_once_it_is_back(
    head_files: list[Path], write_cohort: WriteCohort, tmp_path: Path
) -> None:
    lost = Path(shutil.copy(head_files[2], tmp_path / "lost.nii.gz"))
    cohort = write_cohort({"a": head_files[0], "b": head_files[1], "lost": lost})
    record = {"stage": "ingest", "schema_version": SCHEMA_VERSION, "data_version": "v"}
    write_json(cohort / "stage.json", {**record, "contents": {}, "key": "k"})

    def usable() -> dict[str, bool]:
        out = stage.run(
            "preprocess",
            lambda work: run.preprocess(
                work, data=Path("/"), cohort=cohort, params=PARAMS, workers=2
            ),
            to=stage.Destination(tmp_path / "volumes"),
            params={"preprocess": PARAMS},
            inputs={"ingest": cohort},
        )
        return dict(read_table(out / "scans.tsv", VOLUMES).set_index("scan_id")["usable"])

    lost.rename(tmp_path / "elsewhere")
    assert usable() == {"a": True, "b": True, "lost": False}
    (tmp_path / "elsewhere").rename(lost)
    assert usable() == {"a": True, "b": True, "lost": True}
    made = (tmp_path / "volumes/stage.json").stat().st_mtime_ns
    usable()
    assert (tmp_path / "volumes/stage.json").stat().st_mtime_ns == made
    assert read_circumstances(tmp_path / "volumes")["reused"] == 2


def test_a_killed_run_is_resumed_to_the_bytes_of_a_clean_one(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    heads = {f"head{number}": path for number, path in enumerate([*head_files, *head_files[:2]])}
    cohort = write_cohort(heads)
    record = {"stage": "ingest", "schema_version": SCHEMA_VERSION, "data_version": "v"}
    write_json(cohort / "stage.json", {**record, "contents": {}, "key": "k"})

    clean = preprocess(cohort, workers=1).dir
    module, out = "tests.preprocess.stage_process", tmp_path / "killed"
    command = [sys.executable, "-m", module, str(cohort), str(out), PARAMS.model_dump_json()]
    partial = tmp_path / ".killed.partial"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not list(partial.rglob("sub-*_T1w.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = inodes(partial)
    finished = [name for name in done if name.endswith(".json")]
    assert 0 < len(finished) < len(heads)
    assert not out.exists()

    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made = content(out)
    expected = content(clean)
    assert made.pop("stage.json")  # the clean one was not published, and of no known data
    assert made.pop("dataset_description.json") != expected.pop("dataset_description.json")
    assert made == expected
    again = inodes(out)
    assert all(again[name] == done[name] for name in finished)


def test_too_few_usable_scans_are_an_error_that_counts_the_reasons(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.nii"
    nib.save(nib.Nifti1Image(np.zeros((40, 40, 40)), np.diag([4.0, 4, 4, 1])), empty)
    cohort = write_cohort({"head0": head_files[0], "b": empty, "c": empty})
    with pytest.raises(DataError, match=r"1 of 3 scans can be used.*2 × empty"):
        preprocess(cohort)


def test_a_folder_that_cannot_be_written_is_not_the_fault_of_a_scan(
    head_files: list[Path], write_cohort: WriteCohort, preprocess: Preprocess, tmp_path: Path
) -> None:
    # A folder in the place of a file cannot be unlinked, whoever asks.
    place = path_of(LAYOUT.volume, "head0")
    (tmp_path / "work" / place).mkdir(parents=True)
    cohort = write_cohort({"head0": head_files[0], "head1": head_files[1]})
    with pytest.raises(OSError, match=place.name):
        preprocess(cohort, workers=1)


def test_a_worker_that_is_killed_gives_an_error_that_says_what_to_do(
    head_files: list[Path],
    write_cohort: WriteCohort,
    preprocess: Preprocess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The template is what a worker gets first; unpacking this one kills it.
    monkeypatch.setattr(templates, "build", lambda *_: Deadly())
    cohort = write_cohort({"head0": head_files[0], "head1": head_files[1]})
    with pytest.raises(UsageError, match="fewer --workers"):
        preprocess(cohort)


class Deadly:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[int, int]]:
        return _kill_worker, (os.getpid(), signal.SIGKILL)


def _kill_worker(parent: int, number: int) -> None:
    assert os.getpid() != parent
    os.kill(os.getpid(), number)


def finish(cohort: Path, out: Path) -> dict[str, Any]:
    """Run the stage as the command does; return what is noted beside its output."""
    stage.run(
        "preprocess",
        lambda work: run.preprocess(work, data=Path("/"), cohort=cohort, params=PARAMS, workers=1),
        to=stage.Destination(out),
        params={"preprocess": PARAMS},
        inputs={"ingest": cohort},
    )
    return read_circumstances(out)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "altered": lambda path: path.write_bytes(path.read_bytes()[:-2] + b"!!"),
}


def test_a_damaged_volume_is_refused_and_preprocess_makes_it_alone_anew(
    head_files: list[Path], write_cohort: WriteCohort, tmp_path: Path
) -> None:
    cohort = write_cohort({"head0": head_files[0], "head1": head_files[1]})
    record = {"stage": "ingest", "schema_version": SCHEMA_VERSION, "contents": {}}
    write_json(cohort / "stage.json", {**record, "data_version": "v1"})
    out = tmp_path / "volumes"
    assert finish(cohort, out)["reused"] == 0
    before = content(out)
    volume = out / path_of(LAYOUT.volume, "head1")
    for damage in DAMAGES.values():
        kept = inodes(out)
        volume.rename(out / "copy")  # its inode may be that of a cache
        shutil.copy(out / "copy", volume)
        (out / "copy").unlink()
        damage(volume)
        with pytest.raises(DataError, match=r"head1_.*_T1w\.nii .*or run 'preprocess' again"):
            verify.check("preprocess", out, items=True)
        assert finish(cohort, out)["reused"] == 1
        assert content(out) == before
        other = path_of(LAYOUT.volume, "head0").name
        assert inodes(out)[other] == kept[other]
        verify.check("preprocess", out, items=True)
