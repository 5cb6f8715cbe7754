"""What a segmentation outlines in raw scans: a mask in the voxels of each scan, and its volumes.

The masks are a dataset of BIDS-Derivatives: corrected by hand and put into ``derivatives/`` of the
raw data, they are label images to train on (`LabelImage`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import neurofoundry
from neurofoundry.contracts.nifti import open_image
from neurofoundry.contracts.volumes import VolumeFolder
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune.segment import class_shares
from neurofoundry.inference.embeddings import (
    Embedded,
    Weights,
    describe_scans,
    embed_scans,
    open_table,
)
from neurofoundry.inference.members import ModelFolder
from neurofoundry.inference.scans import is_volumes
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.segmenter import Segmenter
from neurofoundry.preprocess.label_images import read_placement, to_scan
from neurofoundry.preprocess.layout import BIDS_VERSION, DESCRIPTION
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import Job
from neurofoundry.runtime.files import atomic, hash_json, write_json, write_text
from neurofoundry.runtime.guard import guard_place
from neurofoundry.runtime.log import LOGGER
from neurofoundry.tasks import Segmentation

_NAMED = re.compile(r"(sub-[A-Za-z0-9]+)(_ses-[A-Za-z0-9]+)?((?:_[a-z]+-[A-Za-z0-9]+)*)_T1w")
"""A name of BIDS: subject, session and other entities."""


@dataclass(frozen=True)
class Outliner(Weights):
    """Networks whose mean outlines scans; what is kept of a scan are the volumes of its classes in
    ml, and beside them its mask."""

    task: Segmentation

    def see(
        self, jobs: Sequence[Job], volumes: VolumeFolder, params: PreprocessParams
    ) -> NDArray[np.floating]:
        """Write a mask for each scan; return the volumes (scans, classes) of the classes, ml."""
        return np.array([self._outline(job, volumes, params) for job in jobs])

    def _outline(self, job: Job, volumes: VolumeFolder, params: PreprocessParams) -> list[float]:
        with torch.no_grad():
            batch = read_batch(volumes, [job.scan_id], contrasts=self.plan.contrasts)
            shares = self.encoder(batch)[0].cpu().numpy()
        if not np.isfinite(shares).all():
            raise DataError(
                "The model gives probabilities that are not numbers. Its weights are damaged."
            )
        stored = open_image(job.path)
        classes = to_scan(
            shares.transpose(0, 3, 2, 1),
            read_placement(volumes.folder, job.stem, params),
            params.grid,
            stored.affine,
            stored.shape[:3],
        )
        write_mask(_kept(volumes.folder, job.key), classes, stored)
        counts = np.bincount(classes.ravel(), minlength=1 + len(self.task.classes))
        voxel_ml = abs(np.linalg.det(stored.affine[:3, :3])) / 1000
        return [float(count * voxel_ml) for count in counts[1:]]


class MeanShares(nn.Module):
    """The mean of the probabilities that networks give each voxel."""

    def __init__(self, networks: Sequence[Segmenter], *, mirror: bool) -> None:
        super().__init__()
        self.members, self.mirror = networks, mirror
        self.registered = nn.ModuleList(networks)

    def forward(self, volumes: Tensor) -> Tensor:
        """Return (batch, 1 + classes, z, y, x) of volumes in steps of ``SLOPE``."""
        shares = [class_shares(each, volumes, mirror=self.mirror) for each in self.members]
        return torch.stack(shares).mean(0)


def outline(
    places: Sequence[Path],
    *,
    members: Sequence[ModelFolder],
    out: Path,
    workers: int,
    template: Path | None,
    mask_command: str | None,
) -> None:
    """Write the masks of all scans into a folder of the name of ``out``, and the table ``out``.

    Columns: those of every table, ``mask``, its path beside the table, and ``ml_CLASS``. The mask
    has the shape and the place of its scan, 0 for background and k for the k-th class. Raises
    DataError and UsageError.
    """
    folder = out.with_suffix("")
    _guard(folder, places)
    outliner = read_outliner(members)
    with open_table(out) as (work, write):
        rows = list(
            embed_scans(
                places,
                outliner,
                work=work,
                workers=workers,
                template=template,
                mask_command=mask_command,
            )
        )
        masks = work / "masks"
        shutil.rmtree(masks, ignore_errors=True)  # of an earlier try
        label = re.sub("[^A-Za-z0-9]", "", str(members[0].plan.task["name"]))
        names = _write_dataset(masks, rows, outliner.task, label, work)
        write(_table(rows, names, outliner, folder.name))
        masks.replace(folder)
    LOGGER.info("masks of %d scans are in %s", sum(map(bool, names)), folder)


def read_outliner(members: Sequence[ModelFolder]) -> Outliner:
    """Read the networks of a segmentation. Raises DataError."""
    plan, task = members[0].plan, members[0].task
    assert isinstance(task, Segmentation)
    read = [member.read_network() for member in members]
    networks = [network for network in read if isinstance(network, Segmenter)]
    sha256 = hash_json([plan.test_time_augmentation, *(member.sha256 for member in members)])
    together = MeanShares(networks, mirror=members[0].mirror)
    return Outliner(together, plan.weights, sha256, plan.volumes.preprocess, task)


def write_mask(path: Path, classes: NDArray[np.uint8], of: Any) -> None:
    """Write classes (x, y, z) as NIfTI with the geometry of the image ``of``.

    Of its header only what says where voxels lie is kept: texts and extensions may name a person.
    """
    header = type(of.header)()
    header.set_data_shape(of.shape)
    header.set_data_dtype(np.uint8)
    for name in _GEOMETRY:
        header[name] = of.header[name]
    image = type(of)(classes.reshape(of.shape), None, header)
    with atomic(path) as temporary:
        nib.save(image, temporary)


_GEOMETRY = (
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def _guard(folder: Path, places: Sequence[Path]) -> None:
    """Raise UsageError where masks would replace something, or there are no raw scans."""
    guard_place(folder, inputs=places, fix="Give --out another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder}: masks are written there, and it is there already. They may have been "
            "corrected by hand, so nothing is replaced: move it elsewhere, or give --out another "
            "name."
        )
    for place in places:
        if is_volumes(place):
            raise UsageError(
                f"{place}: an output of preprocess, and masks are drawn in the voxels of raw "
                "scans. Give the raw scans instead."
            )


def _write_dataset(
    folder: Path, rows: Sequence[Embedded], task: Segmentation, label: str, work: Path
) -> list[str]:
    """Write a dataset of all masks; return the path of each row's, '' where there is none."""
    folder.mkdir()
    description = {
        "Name": f"Outlines of {', '.join(task.classes)} by a neural network",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "neurofoundry", "Version": neurofoundry.__version__}],
    }
    write_json(folder / DESCRIPTION, description)
    write_json(folder / f"desc-{label}_dseg.json", {"Manual": False})
    lines = ["index\tname", *(f"{n}\t{name}" for n, name in enumerate(task.classes, 1))]
    write_text(folder / f"desc-{label}_dseg.tsv", "\n".join(lines) + "\n")
    names: list[str] = []
    for row in rows:
        if row.features is None:
            names.append("")
            continue
        name = mask_name(row.scan, label)
        if (folder / name).exists():  # of another place that was given
            name = f"{row.scan_id}_desc-{label}_dseg.nii.gz"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_kept(work, row.key), folder / name)
        names.append(name)
    return names


def mask_name(scan: str, label: str) -> str:
    """Return where the mask of a scan lies, by what the scan is known by.

    Of a scan with a name of BIDS that is its place in a dataset of derivatives; ``label`` replaces
    its ``desc``.
    """
    path = PurePosixPath(scan)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    if (found := _NAMED.fullmatch(stem)) is None:
        return f"{path.with_name(stem)}_desc-{label}_dseg.nii.gz"
    sub, ses, others = found.group(1), found.group(2) or "", found.group(3)
    parents = list(path.parent.parts)
    above = parents[: parents.index(sub)] if sub in parents else parents
    others = re.sub("_desc-[A-Za-z0-9]+", "", others)
    place = PurePosixPath(*above, sub, ses.removeprefix("_"), "anat")
    return str(place / f"{sub}{ses}{others}_desc-{label}_dseg.nii.gz")


def _table(
    rows: Sequence[Embedded], names: Sequence[str], outliner: Outliner, beside: str
) -> pd.DataFrame:
    classes = outliner.task.classes
    empty = np.full(len(classes), np.nan)
    ml = np.array([empty if row.features is None else row.features for row in rows])
    columns = {f"ml_{name}": ml[:, n].round(4) for n, name in enumerate(classes)}
    masks = pd.Series([f"{beside}/{name}" if name else None for name in names], dtype=object)
    return describe_scans(rows, outliner.plan).assign(mask=masks, **columns)


def _kept(work: Path, key: str) -> Path:
    return work / f"{key}.nii.gz"
