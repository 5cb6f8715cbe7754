"""What is used is what was written, and the remedy that each message names ends the problem."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from neurofoundry.contracts.cohort import EXCLUDED
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError, UsageError
from neurofoundry.runtime import stage, verify
from neurofoundry.runtime.cache import take
from neurofoundry.runtime.files import hash_file, read_json, write_json

INPUTS = {
    "ingest": (),
    "preprocess": ("ingest",),
    "pretrain": ("preprocess",),
    "finetune": ("preprocess", "pretrain"),
    "evaluate": ("ingest", "preprocess", "pretrain", "finetune"),
}
CONTRACT = {
    "ingest": "scans.tsv",
    "preprocess": "grid.json",
    "pretrain": "encoder.safetensors",
    "finetune": "age/scratch/1.0/0/predictions.tsv",
    "evaluate": "metrics.json",
}


def make(root: Path, name: str) -> bool:
    """Run a stage that writes a little of all that it publishes; return whether it ran."""
    ran = []

    def body(work: stage.Workspace) -> None:
        ran.append(name)
        file = work.dir / CONTRACT[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"what {name} wrote")
        if name == "preprocess":
            rows = ["scan_id\tvolume\tvolume_sha256"]
            for scan in ("a", "b"):
                (work.dir / f"{scan}.nii").write_text(f"volume {scan}" * 1000)
                rows.append(f"{scan}\t{scan}.nii\t{hash_file(work.dir / f'{scan}.nii')}")
            (work.dir / "scans.tsv").write_text("\n".join([*rows, "c\tn/a\tn/a"]) + "\n")
        work.data_version = "v1"

    inputs = {source: root / source for source in INPUTS[name]}
    stage.run(name, body, to=stage.Destination(root / name), params={}, inputs=inputs)
    return bool(ran)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    for name in INPUTS:
        make(tmp_path, name)
    return tmp_path


def invert(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 0x3F for byte in path.read_bytes()))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "inverted": invert,
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("source", "file"),
    [*CONTRACT.items(), ("preprocess", "scans.tsv"), ("preprocess", "b.nii")],
)
def test_an_altered_input_is_refused_and_its_stage_makes_it_again(
    finished: Path, source: str, file: str, damage: str
) -> None:
    path = finished / source / file
    written = path.read_bytes()
    DAMAGES[damage](path)
    readers = [name for name, inputs in INPUTS.items() if source in inputs]
    for name in readers:
        (finished / name / "stage.json").unlink()  # so that it has to run
        shutil.rmtree(finished / name)
        with pytest.raises(DataError) as told:
            make(finished, name)
        assert f"{finished / source} is not what '{source}' wrote: {file} " in str(told.value)
        assert f"or run '{source}' again" in str(told.value)
        assert not (finished / name).exists()
        break
    assert make(finished, source)
    assert path.read_bytes() == written
    assert not verify.differences(finished / source, items=True)
    for name in readers[:1]:
        assert make(finished, name)


def test_a_pipe_is_no_file_of_an_output_and_is_not_waited_for(finished: Path) -> None:
    (finished / "preprocess/b.nii").unlink()
    os.mkfifo(finished / "preprocess/b.nii")
    assert verify.differences(finished / "preprocess", items=True) == ["b.nii is no file"]
    (finished / "ingest/stage.json").unlink()
    os.mkfifo(finished / "ingest/stage.json")
    with pytest.raises(DataError, match="a pipe or device"):
        stage.read_record("ingest", finished / "ingest")
    assert verify.recorded(finished / "ingest") == {}
    os.mkfifo(finished / "table.tsv")
    with pytest.raises(DataError, match="a pipe or device"):
        read_table(finished / "table.tsv", EXCLUDED)


@pytest.mark.parametrize("content", ["", '{"stage": "inge', "[]", '{"contents": []}', "{}", None])
def test_a_damaged_record_certifies_nothing_and_its_stage_runs_once_the_folder_has_moved(
    finished: Path, content: str | None
) -> None:
    folder = finished / "ingest"
    (folder / "stage.json").unlink()
    if content is None:
        os.mkfifo(folder / "stage.json")
    else:
        (folder / "stage.json").write_text(content)
    (said,) = verify.differences(folder, items=True)
    assert said.startswith("stage.json is damaged (")
    assert "move the folder elsewhere" in said
    with pytest.raises(DataError, match="not what was written"):
        verify.check_item(folder / "scans.tsv")
    with pytest.raises(DataError, match=r"or move .* elsewhere and run 'ingest' again"):
        make(finished, "preprocess")
    with pytest.raises(UsageError, match="stage"):
        make(finished, "ingest")
    (folder / "stage.json").unlink()
    with pytest.raises(UsageError, match=r"Move .* elsewhere, then make it"):
        make(finished, "preprocess")
    folder.rename(finished / "elsewhere")
    with pytest.raises(UsageError, match="Make it first"):
        make(finished, "preprocess")
    assert make(finished, "ingest")
    assert not make(finished, "preprocess")


def test_a_finished_stage_is_up_to_date_as_long_as_its_files_are_what_was_written(
    finished: Path,
) -> None:
    for name in ("preprocess", "pretrain", "finetune", "evaluate"):
        assert not make(finished, name)
    invert(finished / "evaluate/metrics.json")
    assert make(finished, "evaluate")
    assert not make(finished, "evaluate")


def test_an_altered_item_of_an_earlier_output_is_not_reused(finished: Path) -> None:
    models, item = finished / "finetune/age/scratch/1.0/0", finished / "new/model"
    assert take(item, "key", earlier=[models], key_of=lambda path: "key" * (path == models))
    shutil.rmtree(item)
    invert(models / "predictions.tsv")
    assert not take(item, "key", earlier=[models], key_of=lambda path: "key" * (path == models))


def test_a_file_of_an_output_is_checked_wherever_in_it_it_lies(finished: Path) -> None:
    file = finished / "finetune" / CONTRACT["finetune"]
    verify.check_item(file)
    invert(file)
    with pytest.raises(DataError, match="not what was written"):
        verify.check_item(file)
    verify.check_item(finished / "of-no-output.nii")


def test_a_record_or_table_that_names_files_elsewhere_is_refused_and_they_are_not_read(
    finished: Path,
) -> None:
    """One of them has no end."""
    cohort, volumes = finished / "ingest", finished / "preprocess"
    record = read_json(cohort / "stage.json")
    outside = {"/dev/zero": "0" * 64, "../preprocess/a.nii": hash_file(volumes / "a.nii")}
    write_json(cohort / "stage.json", record | {"contents": record["contents"] | outside})
    assert len(verify.differences(cohort, items=True)) == 2
    (finished / "a.nii").write_bytes((volumes / "a.nii").read_bytes())
    table = (volumes / "scans.tsv").read_text().replace("\ta.nii\t", "\t../a.nii\t")
    (volumes / "scans.tsv").write_text(table)
    (difference,) = verify.item_differences(volumes)
    assert difference.startswith("../a.nii lies in another folder")
    with pytest.raises(DataError, match="another folder"):
        make(finished, "evaluate")
