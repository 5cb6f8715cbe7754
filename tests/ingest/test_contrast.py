from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neurofoundry.ingest.contrast import in_name, is_agent, told
from tests.support.building import bids, head, run, write_scan

WITHOUT = [
    "T1 BEFORE CONTRAST ADMINISTRATION", "Ax T1 w/o iv contrast", "T1 without gadolinium contrast",
    "t1 ohne Kontrastmittel", "MPRAGE vor KM", "T1 sans injection", "T1 SIN CONTRASTE",
    "T1 senza mdc", "T1 zonder contrast", "T1 unenhanced", "precontrast", "mpragePrecontrast",
    "nocontrast", "avantinjection", "t1_vorKM", "T1 NON-CON", "T1 C-", "T1 KM nein", "T1 PREGAD",
    "3D T1 nativ", "T1 prä KM", "T1 före kontrast", "T1 przed kontrastem", "T1 без контраста",
    "T1 造影前", "T1 平扫", "T1 조영 전", "Kontrastmittel: keines", "T1 GADO -", "T1_km_neg",
    "T1 kontrastfrei", "T1 bei Kontrastmittelallergie", "T1 KM ohne", "T1 pas de contraste",
]  # fmt: skip
AFTER = [
    "T1 W CONTRAST", "T1 mit KM", "t1_mprage_km", "T1 nach KM", "T1 avec injection",
    "T1 après injection", "T1 dopo mdc", "T1 despues de contraste", "T1 Kontrast", "T1 gadolinium",
    "T1 gadobutrol", "DOTAREM T1", "T1 Omniscan", "T1 MULTIHANCE", "AX T1 +C FS", "T1 (C+)",
    "T1 C(+) SAG", "3D T1 TFE C", "t1w_ce", "T1Gd", "T1wGd", "mprageGd", "mpragepost",
    "T1 post 5min", "postcontrast", "T1 POSTCON", "T1 contrast enhanced", "T1 IV contrast",
    "apresinjection", "t1_nachKM", "avecgado", "despuesinyeccion", "T1 PRE AND POST CONTRAST",
    "T1 WITH AND WITHOUT CONTRAST", "T1 W/WO CONTRAST", "T1 GBCA", "T1 po kontrascie",
    "T1 с контрастом", "T1 造影後", "T1 增强", "T1 조영 후", "T1 MultiHance 10ml",
    "T1 efter kontrast", "T1 venous phase Gd", "T1 FAT GAD", "T1 POSCONTRASTE",
]  # fmt: skip
SILENT = [
    "t1_mprage_sag", "T1w", "ax t1 posterior fossa", "T1 C-SPINE", "T1 C2", "T1 COR", "T1 CS",
    "t1_cervical", "MPRAGE post-op", "T1 pre/post surgery", "MPRAGE post-RT", "ADNI phase IV",
    "T1 high contrast", "3D T1 TFE", "sag t1 space", "ir-fspgr", "bravo", "",
    "T1 inversion contrast",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, False) for name in WITHOUT),
        *((name, True) for name in AFTER),
        *((name, None) for name in SILENT),
    ],
)
def test_names_say_whether_an_agent_was_given(name: str, says: bool | None) -> None:
    assert in_name(name) is says
    assert in_name(name.replace(" ", "_")) is says


@pytest.mark.parametrize(
    "nothing",
    ["", "NONE", "none given", "No contrast", "NO", "0", "0 ml", "NIL", "-", "n/a", "NOT GIVEN",
     "W/O", "ohne", "keine", "sans", "UNKNOWN", "Nativ", "NaCl", "Gadovist 0 ml", "contrast: 0ml",
     "pas de contraste", "saline 20 ml"],
)  # fmt: skip
def test_words_for_nothing_are_no_agent(nothing: str) -> None:
    assert not is_agent(nothing)


@pytest.mark.parametrize(
    "agent", ["Gadovist 7 ml", "GADOLINIUM", "gd", "YES", "Dotarem 0.1 mmol/kg", "KM", "IV", "10"]
)
def test_anything_else_in_a_field_for_agents_is_one(agent: str) -> None:
    assert is_agent(agent)


def test_the_name_of_a_series_outweighs_that_of_the_examination() -> None:
    assert told({"SeriesDescription": "T1 PRE", "ProtocolName": "BRAIN +C"}) is False
    assert told({"SeriesDescription": "T1 +C", "ProtocolName": "BRAIN NATIVE"}) is True
    assert told({"SeriesDescription": "T1", "ProtocolName": "BRAIN +C"}) is True
    assert told({"SeriesDescription": "T1"}) is None


@pytest.mark.parametrize(
    ("entity", "sidecar", "reason"),
    [
        ("_acq-postcontrast", {}, "contrast agent: its name says acq-postcontrast"),
        ("_acq-mprageGd", {}, "contrast agent: its name says acq-mprageGd"),
        ("_ce-gadovist", {}, "contrast agent: its name says ce-gadovist"),
        ("", {"ContrastBolusIngredient": "GADOLINIUM"}, "contrast agent: its sidecar"),
        ("", {"ContrastBolusAgent": "Dotarem"}, "contrast agent: its sidecar"),
        ("", {"ContrastBolusVolume": 7.5}, "contrast agent: its sidecar"),
        ("", {"SeriesDescription": "T1 nach KM"}, "contrast agent: its sidecar"),
        ("_acq-pre", {"ContrastBolusIngredient": "GADOLINIUM"}, "contrast agent: its sidecar"),
        ("_ce-none", {}, None),
        ("_ce-NONE", {"ProtocolName": "BRAIN W WO CONTRAST"}, None),
        ("_acq-nocontrast", {}, None),
        ("", {"ContrastBolusIngredient": "none"}, None),
        ("", {"ContrastBolusIngredient": ["NONE"], "ContrastBolusVolume": 0}, None),
    ],
)
def test_names_and_sidecars_of_bids_tell_of_agents(
    entity: str, sidecar: dict[str, object], reason: str | None, tmp_path: Path
) -> None:
    ds = bids(tmp_path / "data" / "ds", 1)
    bids(ds, ["x"], seed=2)
    anat = ds / "sub-x" / "anat"
    (anat / "sub-x_T1w.nii.gz").rename(anat / f"sub-x{entity}_T1w.nii.gz")
    (anat / f"sub-x{entity}_T1w.json").write_text(json.dumps(sidecar))
    bids(ds, ["other"], None, seed=3)
    outcome = run(tmp_path / "data", tmp_path / "out")
    found = outcome.excluded.get(f"ds/sub-x/anat/sub-x{entity}_T1w.nii.gz", "used")
    assert found.startswith(reason or "used")


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["acq-a", "acq-precontrast"], "acq-precontrast"),
        (["acq-postcontrast", "acq-precontrast"], "acq-precontrast"),
        (["acq-2D", "acq-3D"], "acq-3D"),
        (["acq-2dtse", "acq-mprage"], "acq-mprage"),
        (["acq-axial5mm", "acq-mprage"], "acq-mprage"),
        (["echo-1", "echo-2", "rec-RMS"], "rec-RMS"),
        (["echo-2", "echo-1"], "echo-1"),
    ],
)
def test_the_most_useful_image_of_a_session_is_used(
    names: list[str], used: str, tmp_path: Path
) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    for number, name in enumerate(names):
        write_scan(ds / f"sub-x/anat/sub-x_{name}_T1w.nii.gz", 60 + number)
    paths = set(run(tmp_path / "data", tmp_path / "out").scans["path"])
    assert f"ds/sub-x/anat/sub-x_{used}_T1w.nii.gz" in paths
    assert len(paths) == 3


def test_a_finer_image_is_used_before_one_with_a_plainer_name(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    write_scan(ds / "sub-x/anat/sub-x_acq-b_T1w.nii.gz", 70)
    thick = np.diag([4.5, 4.5, 6.0, 1.0])
    write_scan(ds / "sub-x/anat/sub-x_T1w.nii.gz", head(71), thick)
    paths = set(run(tmp_path / "data", tmp_path / "out").scans["path"])
    assert "ds/sub-x/anat/sub-x_acq-b_T1w.nii.gz" in paths


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("a_t1ce.nii.gz", False),
        ("a_T1_postcontrast.nii.gz", False),
        ("a_t1c.nii.gz", False),
        ("a_T1_nativ.nii.gz", True),
        ("a_post_T1w.nii.gz", True),
        ("sub-a_ses-post_T1w.nii.gz", True),
    ],
)
def test_names_in_tables_tell_of_agents(name: str, used: bool, tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = ["one.nii.gz", "two.nii.gz", name]
    for number, file in enumerate(files):
        write_scan(data / file, number + 1)
    rows = "".join(f"{file}\t{number}\n" for number, file in enumerate(files))
    (data / "list.tsv").write_text(f"path\tsubject\n{rows}")
    outcome = run(data, tmp_path / "out")
    assert (name in set(outcome.scans["path"])) is used
    reasons = [reason.partition(":")[0] for reason in outcome.excluded.values()]
    assert reasons == ([] if used else ["contrast agent"])
