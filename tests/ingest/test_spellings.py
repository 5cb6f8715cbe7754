"""Names that are equal but for case, or for how é is written: by Macs as two letters (NFD), by
others as one (NFC), and nobody sees which."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from neurofoundry.params import load_text
from neurofoundry.project import IngestSections
from tests.support.building import ALL_PRETRAIN, bids, run, write_scan

FORMS = ("NFC", "NFD")
HEIGHT = {"height": {"kind": "regression", "column": "height", "required": False}}


def height(form: str) -> dict[str, Any]:
    """Return columns as params.yaml declares them."""
    text = f"""
        ingest: {{splits: {ALL_PRETRAIN}, columns: {{height: {{from: [Größe]}}}}}}
        tasks: {HEIGHT}
        seed: 1"""
    values = load_text(unicodedata.normalize(form, text), IngestSections, origin="params.yaml")
    return {"columns": values.ingest.columns}


@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("written", FORMS)
def test_what_a_folder_a_table_and_parameters_call_alike_is_one(
    disk: str, written: str, tmp_path: Path
) -> None:
    def on_disk(name: str) -> str:
        return unicodedata.normalize(disk, name)

    data = tmp_path / "data"
    file = on_disk("sub-é1/ses-ü/anat/sub-é1_ses-ü_T1w.nii.gz")
    write_scan(data / file, 9)
    bids(data, ["2"], table=None)
    texts = {
        "participants.tsv": "participant_id\tsex\tGröße\nsub-é1\tä\t180\nsub-2\tF\t170\n",
        "participants.json": json.dumps({"sex": {"Levels": {"ä": "male"}}}, ensure_ascii=False),
        on_disk("sub-é1/sub-é1_sessions.tsv"): "session_id\tage\nses-ü\t40\n",
        on_disk("sub-é1/ses-ü/sub-é1_ses-ü_scans.tsv"): "filename\tsite\nanat/"
        "sub-é1_ses-ü_T1w.nii.gz\tX\n",
    }
    for name, text in texts.items():
        (data / name).write_text(unicodedata.normalize(written, text))
    of = run(data, tmp_path / "out", tasks=HEIGHT, **height(disk)).scans.set_index("path").loc[file]
    assert (of["sex"], of["height"], of["age"], of["site"]) == ("M", "180", 40, "X")


@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("written", FORMS)
def test_paths_that_look_alike_lead_to_the_file(disk: str, written: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / unicodedata.normalize(disk, "Köln")
    for number, name in enumerate(["ü/é", "b"]):
        write_scan(folder / unicodedata.normalize(disk, f"{name}.nii.gz"), number)
    table = "path\tsubject\nü/é.nii.gz\t1\nb.nii.gz\t2\n"
    (folder / "t.tsv").write_text(unicodedata.normalize(written, table))
    declared = {"name": "k", "kind": "table", "path": unicodedata.normalize(written, "Köln")}
    scans = run(tmp_path / "data", tmp_path / "out", datasets=[declared]).scans
    assert all((tmp_path / "data" / path).is_file() for path in scans["path"])
    assert scans["subject"].tolist() == ["sub-1", "sub-2"]


def test_of_folders_that_look_alike_none_is_lost(tmp_path: Path) -> None:
    data = bids(tmp_path / "data", ["2"], table=None)
    for number, form in enumerate(FORMS):
        bids(data, [unicodedata.normalize(form, "é1")], table=None, seed=number + 1)
    out = run(data, tmp_path / "out")
    assert len(set(out.scans["path"]) | set(out.excluded)) == 3
    assert out.scans["person"].is_unique
    assert ["several T1w: " in why for why in out.excluded.values()] == [True]


def test_rows_that_look_alike_and_disagree_are_not_believed(tmp_path: Path) -> None:
    rows = (f"sub-{unicodedata.normalize(form, 'é1')}\t{form[-1]}" for form in FORMS)
    table = "participant_id\tsite\nsub-2\tX\n" + "\n".join(rows)
    out = run(bids(tmp_path / "data", ["é1", "2"], table=table), tmp_path / "out")
    assert sorted(out.scans["site"]) == ["X", "data"]
    assert "participants.tsv" in out.notes


def test_persons_whose_labels_are_nearly_alike_are_noted(tmp_path: Path) -> None:
    out = run(bids(tmp_path / "data", ["a1", "A-01", "b1"]), tmp_path / "out")
    assert out.scans["person"].nunique() == 3
    assert "data/sub-A-01 and data/sub-a1: the labels are nearly alike, and count as 2" in out.notes
    assert "b1" not in out.notes
