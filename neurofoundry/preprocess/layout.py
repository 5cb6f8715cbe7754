"""How volumes/ is laid out: as BIDS-Derivatives (https://bids-specification.readthedocs.io).

Every scan has a folder, ``sub-LABEL/ses-LABEL/anat/``, in which the names of its files begin alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import neurofoundry
from neurofoundry.contracts.cohort import T1W
from neurofoundry.contracts.volumes import Grid
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.runtime.files import write_json, write_text

CONTRAST = "CONTRAST"
"""Stands for that of a further contrast in the names of its files."""

BIDS_VERSION = "1.10.1"

SPACE = "MNI152NLin2009aSym"
"""The standard space of nilearn's template, as BIDS calls it."""
OTHER_SPACE = "MNI152"
"""That of a template in a folder, of which only its files' hash is known."""
SOURCE = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"

DESCRIPTION, IGNORE, README = "dataset_description.json", ".bidsignore", "README"

OURS = (
    "*.html",
    "*.png",
    "*_xfm.*",
    "/*.label-*.nii",
    "/*.tsv",
    "/grid.json",
    "/landmarks.json",
    "/stage.json",
)
"""Files for which BIDS has no names."""

ABOUT = """Brains on one standard grid, by neurofoundry; docs/architecture.md says what they are.

scans.tsv lists every scan: whether its volume is usable, why not, and where it lies. qc.html shows
them all. A voxel is a z-score; outside the brain it is 0.
"""


@dataclass(frozen=True)
class Layout:
    """The names of a scan's files: each is to be filled with how the names of that scan begin."""

    volume: str
    result: str
    """The sidecar of the volume, written last; of a scan without a volume it says why."""
    picture: str
    transform: str
    warps: tuple[str, ...]
    """Forward, inverse; of a registration by syn."""
    further: tuple[str, ...] = ()
    """Those of a further contrast, called CONTRAST: volume, picture, transform."""

    @classmethod
    def of(cls, params: PreprocessParams) -> Layout:
        """Return the names of the files that these parameters make."""
        space = space_of(params)
        image = f"{{}}_space-{space}_res-{_resolution(params.grid)}_desc-preproc_T1w"
        there, back = f"{{}}_from-T1w_to-{space}", f"{{}}_from-{space}_to-T1w"
        deformed = (f"{way}_mode-image_desc-syn_xfm.nii.gz" for way in (there, back))
        return cls(
            volume=f"{image}.nii",
            result=f"{image}.json",
            picture=f"{image}.png",
            transform=f"{there}_mode-image_desc-affine_xfm.txt",
            warps=tuple(deformed) if params.registration == "syn" else (),
            further=(
                image.removesuffix(T1W) + f"{CONTRAST}.nii",
                image.removesuffix(T1W) + f"{CONTRAST}.png",
                f"{{}}_from-T1w_to-{CONTRAST}_mode-image_desc-rigid_xfm.txt",
            ),
        )

    def of_contrast(self, contrast: str) -> tuple[str, str, str]:
        """Return the names of the files of a further contrast: volume, picture, transform."""
        volume, drawn, transform = (name.replace(CONTRAST, contrast) for name in self.further)
        return volume, drawn, transform

    @property
    def files(self) -> tuple[str, ...]:
        """All of them in the order in which they are written.

        The last one is there only when all others are.
        """
        return (*self.warps, self.volume, self.transform, self.picture, self.result)


def space_of(params: PreprocessParams) -> str:
    """Return the label of the space that volumes lie in."""
    return SPACE if params.template is None else OTHER_SPACE


def beginnings(scans: pd.DataFrame) -> dict[str, str]:
    """Return how the names of each scan's files begin, by ``scan_id``, for a whole cohort."""
    person = scans["dataset"] + "/" + scans["subject"]
    named = scans["dataset"] + scans["subject"].str.removeprefix("sub-")
    sub = _labels(named, of=person, within=[""] * len(scans))
    ses = _labels(scans["session"].str.removeprefix("ses-"), of=scans["session"], within=sub)
    return {
        scan_id: f"sub-{one}/ses-{other}/anat/sub-{one}_ses-{other}"
        for scan_id, one, other in zip(scans["scan_id"], sub, ses, strict=True)
    }


def _labels(texts: Iterable[str], *, of: Iterable[str], within: Iterable[str]) -> list[str]:
    """Return texts as labels of BIDS: letters and digits only.

    A hash keeps apart the labels ``of`` two that look the same ``within`` one place.
    """
    plain = [re.sub(r"[^A-Za-z0-9]", "", text) for text in texts]
    whose: dict[tuple[str, str], set[str]] = {}
    seen = [(place, label.lower()) for place, label in zip(within, plain, strict=True)]
    for key, owner in zip(seen, owners := list(of), strict=True):
        whose.setdefault(key, set()).add(owner)
    return [
        label
        if label and len(whose[key]) == 1
        else label + hashlib.sha256(owner.encode()).hexdigest()[:6]
        for label, key, owner in zip(plain, seen, owners, strict=True)
    ]


def write_description(
    folder: Path,
    params: PreprocessParams,
    *,
    template: Mapping[str, str],
    raw: str,
    data_version: str,
    without_volume: Iterable[str],
    contrasts: Sequence[str],
) -> None:
    """Write what makes ``folder`` a dataset of BIDS-Derivatives.

    ``template`` is its `fingerprint`, ``raw`` a URI of the raw data, and ``without_volume`` are the
    names of files that describe no image.
    """
    description = {
        "Name": "Preprocessed T1-weighted brains"
        + "".join(f" and {contrast}" for contrast in contrasts[1:]),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neurofoundry", "Version": neurofoundry.__version__}],
        "SourceDatasets": [{"URL": raw, "Version": data_version}] if raw else [],
    }
    write_json(folder / DESCRIPTION, description)
    # What is true of all volumes is said once, in a sidecar from which all of them inherit.
    for contrast in contrasts:
        write_json(folder / common_sidecar(params, contrast), _sidecar(params, template))
    write_text(folder / IGNORE, "\n".join([*OURS, *(f"/{name}" for name in without_volume)]) + "\n")
    write_text(folder / README, ABOUT)


def common_sidecar(params: PreprocessParams, contrast: str) -> str:
    """Return the name of the sidecar that says what is true of all volumes of a contrast."""
    return beside(Layout.of(params).result.format("").removeprefix("_"), contrast)


def beside(name: str, contrast: str) -> str:
    """Return the name of the file that is of a contrast what ``name`` is of T1w."""
    return name.replace(f"_{T1W}.", f"_{contrast}.")


def _sidecar(params: PreprocessParams, template: Mapping[str, str]) -> dict[str, Any]:
    x, y, z = params.grid.shape
    own = template.get("template_sha256")
    return {
        "Description": f"Brain, normalized in intensity ({params.normalization}); 0 outside of it",
        "SpatialReference": f"urn:sha256:{own}" if own else SOURCE,
        "SkullStripped": True,
        "Resolution": f"{params.grid.spacing:g} mm isotropic, {x} x {y} x {z} voxels",
    }


def _resolution(grid: Grid) -> str:
    return f"{grid.spacing:g}".replace(".", "p")
