"""Synthetic scans and their tables as BIDS datasets."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

import neurofoundry
from neurofoundry.phantom.anatomy import Subject
from neurofoundry.phantom.atlas import Atlas
from neurofoundry.phantom.scanner import SITES, VOLUMES, Head, Site, further, head
from neurofoundry.runtime.files import atomic, write_json, write_text

_GENERATED_BY = [{"Name": "neurofoundry phantom", "Version": neurofoundry.__version__}]
_README = """\
Synthetic T1-weighted heads
===========================

Nobody was scanned: every head is computed by `neurofoundry phantom` from the ICBM 2009a nonlinear
symmetric template. Its diagnosis (CN or AD, an Alzheimer's-like atrophy), stroke, sex and age are
labels of the simulation and say nothing about patients. The scanners do not exist.

`derivatives/truth` holds what the simulation knows: volumes, the rigid pose from the scanner to
MNI space, and masks: `label-lesion` (infarcts and white matter lesions, where there are any), and
for every scan `label-infarct`, which is empty without a stroke, and `label-ventricle`.

Template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University. Fonov et al., NeuroImage 54 (2011) 313-327.
"""

_FURTHER = """
Every session was scanned with {contrasts}, each on a grid of its own; the head has moved in
between. `derivatives/truth/truth.tsv` has the poses: CONTRAST_pose_RC for others than T1w.
"""

_PARTICIPANTS = {
    "age": {"Description": "Age at the first session", "Units": "year"},
    "sex": {"Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Imaginary scanner of the first session; sessions.tsv has the others"},
    "diagnosis": {"Levels": {"CN": "no dementia", "AD": "Alzheimer's-like atrophy"}},
    "stroke": {"Description": "Chronic infarct", "Levels": {"no": "none", "yes": "one"}},
}
_TRUTH = {
    "age": {"Description": "Age at this session", "Units": "year"},
    "territory": {"Description": "Artery whose territory holds the infarct"},
    "brain_ml": {"Description": "Volume inside the hull of the brain", "Units": "ml"},
    "pose_00": {
        "Description": "pose_RC: row R, column C of the rigid 4x4 matrix from scanner to MNI space",
        "Units": "mm",
    },
}


def dataset_name(site: Site) -> str:
    """Return the folder of the dataset that a site belongs to."""
    return "phantom-external" if site.external else "phantom"


def write_scan(
    tree: Path,
    subject: Subject,
    session: str,
    atlas_folder: Path,
    spacing_mm: float | None,
    contrasts: Sequence[str],
) -> dict[str, Any]:
    """Scan one session and write images, sidecars and masks; return its row of truth.tsv."""
    site = SITES[subject.site_of(session)]
    dataset = tree / dataset_name(site)
    place = Path(subject.participant) / f"ses-{session}" / "anat"
    name = f"{subject.participant}_ses-{session}"
    folder = dataset / place
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, Any] = {}
    for contrast in contrasts:
        scan = head(subject, session, site, _load_atlas(atlas_folder), spacing_mm, contrast)
        stored = np.clip(np.rint(scan.image), 0, np.iinfo(np.int16).max).astype(np.int16)
        _write_nifti(folder / f"{name}_{contrast}.nii.gz", stored, scan.affine)
        scanner = site if contrast == "T1w" else further(site, contrast)
        write_json(folder / f"{name}_{contrast}.json", _sidecar(scanner))
        if contrast == "T1w":
            _write_masks(dataset / "derivatives" / "truth" / place, name, scan)
            truth |= _truth(subject, session, scan)
        else:
            truth |= _pose(scan, f"{contrast}_")
    return truth


def _write_masks(folder: Path, name: str, scan: Head) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    masks = {"infarct": scan.infarct, "ventricle": scan.ventricle}
    for label, mask in {**masks, **({"lesion": scan.lesion} if scan.lesion.any() else {})}.items():
        path = folder / f"{name}_label-{label}_mask.nii.gz"
        _write_nifti(path, mask.astype(np.uint8), scan.affine)


def write_tables(
    tree: Path,
    subjects: Sequence[Subject],
    truth: Sequence[dict[str, Any]],
    contrasts: Sequence[str],
) -> None:
    """Write descriptions and tables of both datasets; ``truth`` holds the rows of `write_scan`."""
    for dataset in sorted({dataset_name(site) for site in SITES.values()}):
        members = [s for s in subjects if dataset_name(SITES[s.site]) == dataset]
        names = {subject.participant for subject in members}
        _write_dataset(tree / dataset, members, contrasts)
        _write_truth(
            tree / dataset / "derivatives" / "truth",
            [row for row in truth if row["participant_id"] in names],
        )


def _write_dataset(folder: Path, members: Sequence[Subject], contrasts: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = "Synthetic heads" + (", external site" if "external" in folder.name else "")
    _write_description(folder, name, "raw")
    several = _FURTHER.format(contrasts=" and ".join(contrasts)) if contrasts[1:] else ""
    write_text(folder / "README", _README + several)
    write_json(folder / "participants.json", _PARTICIPANTS)
    _write_table(
        folder / "participants.tsv",
        [
            {
                "participant_id": subject.participant,
                "age": f"{subject.age:.1f}",
                "sex": subject.sex,
                "site": subject.site,
                "diagnosis": subject.diagnosis,
                "stroke": subject.stroke,
            }
            for subject in members
        ],
    )
    for subject in members:
        _write_table(
            folder / subject.participant / f"{subject.participant}_sessions.tsv",
            [
                {
                    "session_id": f"ses-{session}",
                    "age": f"{age:.1f}",
                    "site": subject.site_of(session),
                }
                for session, age in subject.sessions
            ],
        )


def _write_truth(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_description(folder, "What the simulation knows", "derivative")
    write_json(folder / "truth.json", _TRUTH)
    _write_table(folder / "truth.tsv", rows)


def _write_description(folder: Path, name: str, kind: str) -> None:
    write_json(
        folder / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": "1.9.0",
            "DatasetType": kind,
            "GeneratedBy": _GENERATED_BY,
        },
    )


@cache
def _load_atlas(folder: Path) -> Atlas:
    return Atlas.load(folder)


def _truth(subject: Subject, session: str, scan: Head) -> dict[str, Any]:
    return {
        "participant_id": subject.participant,
        "session_id": f"ses-{session}",
        "age": f"{dict(subject.sessions)[session]:.1f}",
        "sex": subject.sex,
        "site": subject.site_of(session),
        "diagnosis": subject.diagnosis,
        "stroke": subject.stroke,
        "territory": subject.infarct.territory if subject.infarct else "n/a",
        **{f"{name}_ml": f"{scan.volumes_ml[name]:.3f}" for name in VOLUMES},
        **_pose(scan),
    }


def _pose(scan: Head, prefix: str = "") -> dict[str, str]:
    places = [(row, column) for row in range(4) for column in range(4)]
    return {f"{prefix}pose_{r}{c}": f"{scan.pose[r, c]:.6f}" for r, c in places}


def _sidecar(site: Site) -> dict[str, Any]:
    fields = {
        "Modality": "MR",
        "Manufacturer": site.manufacturer,
        "ManufacturersModelName": site.model,
        "MagneticFieldStrength": site.field_tesla,
        "RepetitionTime": site.repetition_s,
        "EchoTime": site.echo_s,
        "InversionTime": site.inversion_s,
        "FlipAngle": site.flip_deg,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _write_nifti(path: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    # Without name and time in the header, equal scans are equal files. The header that Python's
    # gzip writes depends on its version.
    with atomic(path) as temporary:
        temporary.write_bytes(zlib.compress(image.to_bytes(), level=1, wbits=zlib.MAX_WBITS | 16))


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
