from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import stage, store
from neurofoundry.runtime.stage import Destination, Shard


def publish(
    root: Path, name: str, manifest: str, inputs: dict[str, Path] | None = None, **params: object
) -> tuple[Path, bool]:
    """Run a tiny stage into a store; where its output lies, and whether its body ran."""
    ran = []

    def body(work: stage.Workspace) -> None:
        ran.append(work.earlier)
        (work.dir / "scans.tsv").write_text(f"{params.get('content')}\n")
        work.data_version = "v1"

    folder = stage.run(
        name,
        body,
        to=Destination(root / manifest, root / "store"),
        params=params,
        inputs={key: store.locate(path) for key, path in (inputs or {}).items()},
    )
    return folder, bool(ran)


def test_runs_share_what_they_have_in_common_and_nothing_is_replaced(tmp_path: Path) -> None:
    cohort = {"ingest": tmp_path / "run1/cohort"}
    publish(tmp_path, "ingest", "run1/cohort")
    first, ran = publish(tmp_path, "preprocess", "run1/volumes", cohort, grid=1)
    assert ran
    second, ran = publish(tmp_path, "preprocess", "run2/volumes", cohort, grid=2)
    assert ran
    again, ran = publish(tmp_path, "preprocess", "run3/volumes", cohort, grid=1)
    assert not ran
    assert first == again != second
    assert store.locate(tmp_path / "run1/volumes") == store.locate(tmp_path / "run3/volumes")
    assert first.parent == tmp_path / "store/preprocess"
    assert store.outputs(tmp_path / "store", "preprocess") == [second, first]


def test_other_data_makes_another_cohort_and_the_same_data_the_same(tmp_path: Path) -> None:
    first, _ = publish(tmp_path, "ingest", "a", content="x")
    inode = (first / "scans.tsv").stat().st_ino
    assert publish(tmp_path, "ingest", "b", content="x") == (first, True)
    assert (first / "scans.tsv").stat().st_ino == inode
    published = {path.name for path in first.parent.glob("[!.]*")}
    assert published == {first.name}

    # The parameters are the same: only what it finds in the data tells two cohorts apart.
    (tmp_path / "truth").write_text("one")

    def body(work: stage.Workspace) -> None:
        (work.dir / "scans.tsv").write_text((tmp_path / "truth").read_text())

    folders = []
    for truth in ("one", "two"):
        (tmp_path / "truth").write_text(truth)
        folders.append(
            stage.run(
                "ingest",
                body,
                to=Destination(tmp_path / truth, tmp_path / "store"),
                params={},
                inputs={},
            )
        )
    assert folders[0] != folders[1]
    assert (store.locate(tmp_path / "one") / "scans.tsv").read_text() == "one"


def test_a_manifest_of_an_output_that_is_gone_or_another_says_so(tmp_path: Path) -> None:
    folder, _ = publish(tmp_path, "ingest", "cohort")
    other, _ = publish(tmp_path, "ingest", "other", content="y")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=r"cohort: .* not in .* found nothing"):
        store.locate(tmp_path / "cohort")
    shutil.copytree(other, folder)
    with pytest.raises(DataError, match=r"Mount the same store"):
        store.locate(tmp_path / "cohort")
    (tmp_path / "torn").write_text("{")
    with pytest.raises(DataError, match="neither a folder nor a manifest"):
        store.locate(tmp_path / "torn")


def test_a_list_of_an_orchestrator_counts_as_its_members(tmp_path: Path) -> None:
    folder, _ = publish(tmp_path, "ingest", "cohort")
    listed = json.dumps([str(tmp_path / "cohort"), str(tmp_path)])
    assert store.locate_all([Path(listed), tmp_path]) == [folder, tmp_path, tmp_path]
    assert store.locate_all([Path("[]")]) == []


def test_parts_take_every_item_once() -> None:
    items = list(range(11))
    parts = [Shard.parse(f"{number}/4") for number in (1, 2, 3, 4)]
    taken = [items[part.items] for part in parts]
    assert sorted(item for part in taken for item in part) == items
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    assert items[Shard().items] == items
    assert [Shard().whole, parts[0].whole] == [True, False]


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "a/b", "1/2/3"])
def test_an_impossible_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected NUMBER/OF"):
        Shard.parse(text)


def test_only_finished_outputs_of_the_stage_are_listed(tmp_path: Path) -> None:
    folder, _ = publish(tmp_path, "ingest", "cohort")
    shutil.copytree(folder, folder.with_name(f".{folder.name}.partial"))
    (folder.parent / "unfinished").mkdir()
    assert store.outputs(tmp_path / "store", "ingest") == [folder]
    assert store.outputs(tmp_path / "store", "preprocess") == []
