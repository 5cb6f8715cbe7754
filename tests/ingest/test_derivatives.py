from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neurofoundry.errors import DataError
from neurofoundry.ingest.derivatives import derived_entity, why_derivative
from tests.support.building import bids, run


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ({"DatasetType": "derivative"}, "DatasetType"),
        ({"DatasetType": " Derivatives"}, "DatasetType"),
        ({"datasettype": "DERIVATIVE"}, "DatasetType"),
        ({"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.0"}}, "PipelineDescription"),
        ({"pipelinedescription": {"Name": "qsiprep"}}, "PipelineDescription"),
        ({"GeneratedBy": [{"Name": "sMRIPrep"}]}, "GeneratedBy"),
        ({"GeneratedBy": {"Name": "CAT12"}}, "GeneratedBy"),
        ({"GeneratedBy": "freesurfer"}, "GeneratedBy"),
        ({"GeneratedBy": [{"Name": "HeuDiConv"}, {"Name": "reproin"}]}, None),
        ({"GeneratedBy": [{"Name": "dcm2bids"}]}, None),
        ({"GeneratedBy": [{"Name": "pydeface"}]}, None),
        ({"GeneratedBy": [{"Name": "fMRIPrep"}], "DatasetType": "raw"}, None),
        ({"GeneratedBy": []}, None),
        ({"Name": "study", "BIDSVersion": "1.4.0"}, None),
        ([], None),
    ],
)
def test_a_description_says_whether_a_dataset_is_raw(
    description: Any, says: str | None, tmp_path: Path
) -> None:
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    assert why_derivative(tmp_path) == says


def test_without_a_description_a_dataset_counts_as_raw(tmp_path: Path) -> None:
    assert why_derivative(tmp_path) is None


@pytest.mark.parametrize(
    ("entities", "derived"),
    [
        (["acq-fast", "run-1"], None),
        (["ses-2", "desc-preproc"], "desc-preproc"),
        (["space-MNI152NLin6Asym", "res-2"], "space-MNI152NLin6Asym"),
        (["rec-norm", "acq-desc"], None),
    ],
)
def test_only_names_of_derivatives_have_their_entities(
    entities: list[str], derived: str | None
) -> None:
    assert derived_entity(entities) == derived


def _processed(root: Path, entity: str, description: dict[str, Any] | None) -> Path:
    """Write three subjects whose names have an ``entity``, and a description if there is one."""
    bids(root, 3, seed=5)
    for file in sorted(root.glob("sub-*/anat/*_T1w.nii.gz")):
        file.rename(file.with_name(file.name.replace("_T1w", f"{entity}_T1w")))
    if description is not None:
        (root / "dataset_description.json").write_text(json.dumps(description))
    return root


@pytest.mark.parametrize(
    ("entity", "description"),
    [
        ("_desc-preproc", None),
        ("_desc-preproc", {"Name": "unknown"}),
        ("_space-MNI152NLin6Asym", {"GeneratedBy": [{"Name": "bidsified pipeline"}]}),
        ("", {"PipelineDescription": {"Name": "fMRIPrep"}}),
    ],
)
def test_a_folder_of_derivatives_beside_the_raw_data_makes_no_new_persons(
    entity: str, description: dict[str, Any] | None, tmp_path: Path
) -> None:
    bids(tmp_path / "data" / "study", 3)
    _processed(tmp_path / "data" / "out", entity, description)
    outcome = run(tmp_path / "data", tmp_path / "cohort")
    assert set(outcome.scans["dataset"]) == {"study"}
    assert {reason.partition(":")[0] for reason in outcome.excluded.values()} == {"a derivative"}


def test_a_derivative_image_beside_the_raw_one_is_not_used(tmp_path: Path) -> None:
    ds = bids(tmp_path / "data" / "ds", 2)
    anat = ds / "sub-01" / "anat"
    shutil.copy(anat / "sub-01_T1w.nii.gz", anat / "sub-01_desc-preproc_T1w.nii.gz")
    outcome = run(tmp_path / "data", tmp_path / "out")
    assert len(outcome.scans) == 2
    reason = outcome.excluded["ds/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    assert reason.startswith("a derivative: its name says desc-preproc")


def test_a_derivative_that_is_named_in_the_parameters_is_used(tmp_path: Path) -> None:
    _processed(tmp_path / "data" / "out", "_desc-preproc", {"DatasetType": "derivative"})
    named = [{"name": "out", "kind": "bids", "path": "out"}]
    assert len(run(tmp_path / "data", tmp_path / "cohort", datasets=named).scans) == 3


@pytest.mark.parametrize(
    ("folder", "description"),
    [
        ("derivatives/fmriprep", None),
        ("processed", {"DatasetType": "derivative"}),
        ("processed", {"PipelineDescription": {"Name": "fMRIPrep"}}),
    ],
)
def test_derivatives_that_are_given_alone_are_used_with_a_note(
    folder: str, description: dict[str, Any] | None, tmp_path: Path
) -> None:
    root = _processed(tmp_path / "study" / folder, "", description)
    outcome = run(root, tmp_path / "cohort")
    assert len(outcome.scans) == 3
    assert "a derivative: this is what a pipeline has made of scans" in outcome.notes
    raw = run(bids(tmp_path / "raw", 3), tmp_path / "other")
    assert "derivative" not in raw.notes


def test_a_study_that_holds_derivatives_alone_says_that_they_are_not_searched(
    tmp_path: Path,
) -> None:
    _processed(tmp_path / "study" / "derivatives" / "fmriprep", "", None)
    with pytest.raises(DataError, match="Not searched, as it holds no raw scans: derivatives"):
        run(tmp_path / "study", tmp_path / "cohort")


@pytest.mark.parametrize("name", ["Derivatives", "derivative", "DERIVATIVES"])
def test_folders_of_derivatives_are_ignored_in_any_case(name: str, tmp_path: Path) -> None:
    bids(tmp_path / "data" / "study", 2)
    bids(tmp_path / "data" / name / "pipeline", 2, seed=3)
    assert set(run(tmp_path / "data", tmp_path / "out").scans["dataset"]) == {"study"}


def test_two_datasets_of_the_same_people_get_a_note(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "a", 4)
    bids(tmp_path / "data" / "b", 4, seed=1)
    note = "4 subjects have the label, age and sex of subjects of 'a'"
    assert note in run(tmp_path / "data", tmp_path / "out").notes
    shared = run(tmp_path / "data", tmp_path / "shared", shared_subjects=[["a", "b"]])
    assert note not in shared.notes


def test_equal_labels_of_other_people_get_no_note(tmp_path: Path) -> None:
    bids(tmp_path / "data" / "a", 4)
    rows = "".join(f"sub-0{number}\t{60 + number}\tF\n" for number in range(1, 5))
    bids(tmp_path / "data" / "b", 4, f"participant_id\tage\tsex\n{rows}", seed=1)
    assert "subjects have the label" not in run(tmp_path / "data", tmp_path / "out").notes
