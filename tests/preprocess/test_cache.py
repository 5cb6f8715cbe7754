from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from neurofoundry.preprocess.cache import ScanCache, make_key
from neurofoundry.preprocess.scan import Job, Result
from neurofoundry.runtime.files import hash_file, write_json
from tests.support.preprocessing import LAYOUT, PICTURE, RESULT, TRANSFORM, VOLUME


def write_scan(folder: Path, scan_id: str, key: str, *, volume: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    for name in LAYOUT.files[:-1] if volume else ():
        (folder / name.format(scan_id)).write_text(f"{name} of {key}")
    sha256 = hash_file(folder / LAYOUT.volume.format(scan_id)) if volume else None
    result = Result(key, None if volume else "no head", volume_sha256=sha256)
    write_json(folder / LAYOUT.result.format(scan_id), asdict(result))


def jobs(**keys: str) -> list[Job]:
    return [Job(Path("scan.nii"), scan_id, "", key) for scan_id, key in keys.items()]


@pytest.fixture
def cache(tmp_path: Path) -> ScanCache:
    (tmp_path / "work").mkdir()
    return ScanCache(tmp_path / "work", (tmp_path / "first", tmp_path / "second"), LAYOUT)


def test_a_scan_is_found_by_its_key_wherever_it_was_made(cache: ScanCache, tmp_path: Path) -> None:
    write_scan(tmp_path / "work", "a", "1")
    write_scan(tmp_path / "first", "b", "old")
    write_scan(tmp_path / "second", "b", "2")
    write_scan(tmp_path / "second", "c", "3", volume=False)
    write_scan(tmp_path / "second", "d", "old")
    results = cache.finished(jobs(a="1", b="2", c="3", d="4", e="5"))
    assert {scan_id: result.key for scan_id, result in results.items()} == dict(a="1", b="2", c="3")
    work = tmp_path / "work"
    assert (work / LAYOUT.volume.format("b")).read_text() == f"{LAYOUT.volume} of 2"
    assert (work / LAYOUT.result.format("c")).exists()
    assert not (work / LAYOUT.result.format("d")).exists()


@pytest.mark.parametrize("lost", [VOLUME, TRANSFORM, PICTURE])
def test_a_scan_that_has_lost_a_file_is_not_done(
    cache: ScanCache, tmp_path: Path, lost: str
) -> None:
    write_scan(tmp_path / "first", "a", "1")
    (tmp_path / "first" / lost).unlink()
    assert cache.finished(jobs(a="1")) == {}


def test_a_scan_whose_volume_has_changed_is_not_done(cache: ScanCache, tmp_path: Path) -> None:
    write_scan(tmp_path / "first", "a", "1")
    (tmp_path / "first" / VOLUME).write_text(f"{LAYOUT.volume} of 2")
    assert cache.finished(jobs(a="1")) == {}


@pytest.mark.parametrize("content", ["", "{", '"text"', '{"key": "1", "unknown": 2}'])
def test_a_damaged_result_is_not_done(cache: ScanCache, tmp_path: Path, content: str) -> None:
    write_scan(tmp_path / "first", "a", "1")
    (tmp_path / "first" / RESULT).write_text(content)
    assert cache.finished(jobs(a="1")) == {}


def test_only_files_of_results_and_what_is_to_stay_are_left(
    cache: ScanCache, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    write_scan(work, "a", "1")
    write_scan(work, "b", "2", volume=False)
    (work / "sub-gone/anat").mkdir(parents=True)
    b, gone = LAYOUT.volume.format("b"), "sub-gone/anat/sub-gone_T1w.nii"
    for name in (b, gone, "gone.json", ".a.tmp.nii", "scans.tsv"):
        (work / name).touch()
    scans = jobs(a="1", b="2")
    cache.remove_others(scans, cache.finished(scans), {"scans.tsv"})
    left = {path.name for path in work.rglob("*")}
    assert left == {VOLUME, TRANSFORM, PICTURE, RESULT, LAYOUT.result.format("b"), "scans.tsv"}


def test_a_key_tells_where_one_part_ends() -> None:
    assert make_key("ab", "c") != make_key("a", "bc")
    assert make_key("ab", "c") == make_key("ab", "c")
