"""The template as registration and quality control need it: nilearn's, or one in a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from neurofoundry.contracts import mni
from neurofoundry.errors import UsageError
from neurofoundry.preprocess.load import UnusableScanError, read
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.registration import Level
from neurofoundry.preprocess.resample import Array, Image, Mask, antialias, coarsen, resample
from neurofoundry.runtime.files import hash_file

COMPARISON_MM = 4.0
"""Spacing at which a registered scan is compared with the template, whatever the parameters:
the bounds of quality hold at this resolution."""
COARSEST_MM = 16.0
MOST_POINTS = 40_000
"""At which a level is compared. All 260,000 at 2 mm move real heads by 0.2 mm, as two more steps
of the optimizer do, and cost a second."""
MARGIN_MM = 12.0
"""Around the brain, where the displacements of syn come to rest."""

FILES = ("t1.nii.gz", "mask.nii.gz", "gm.nii.gz", "wm.nii.gz")
"""Of a template in a folder: the head or the brain, the brain's mask, tissue probabilities."""
LEAST_OVERLAP = 0.8
"""Dice of its brain with nilearn's. Those of MNI152 have 0.95 and more, of another space less."""
GREY, WHITE = 0.6, 0.8
"""Probability from which a voxel of the template counts as tissue."""


@dataclass(frozen=True)
class Maps:
    """What a template consists of; all on one grid."""

    t1: Image
    """Intensity, 0..1, of the brain alone."""
    inside: Mask
    grey: Image
    white: Image


@dataclass(frozen=True)
class Template:
    """What the scans are compared with, made once and handed to every worker."""

    centre: Array
    """Centroid of the brain, mm."""
    levels: tuple[Level, ...]
    """The template as registration sees it, coarse to fine."""
    fine: Image
    """Intensity, 0..1, around the brain at the spacing of registration; even numbers of voxels."""
    t1: Image
    grey: Image
    white: Image
    """Intensity and tissue probabilities at ``COMPARISON_MM``, 0..1."""
    depth: Image
    """Signed distance to the edge of the brain in mm, positive inside, at 2 mm."""


def find(params: PreprocessParams, data: Path) -> Path | None:
    """The folder of the template that the parameters name, as seen from the raw data's."""
    return None if params.template is None else data / params.template


def fingerprint(folder: Path | None) -> dict[str, str]:
    """The content of a template's files, which decides a scan's files; empty for nilearn's.

    Raises UsageError where one is missing.
    """
    if folder is None:
        return {}
    digest = hashlib.sha256()
    for name in FILES:
        try:
            digest.update(hash_file(folder / name).encode())
        except OSError as error:
            raise UsageError(
                f"preprocess.template: {folder / name} cannot be read: {error.strerror}. Expected "
                f"a folder with {', '.join(FILES)}; relative paths start at the raw data's folder."
            ) from error
    return {"template_sha256": digest.hexdigest()}


def build(registration_spacing: float, folder: Path | None = None) -> Template:
    """Read the template, nilearn's without a folder, and derive what workers need. About 1 s."""
    maps = read_maps(folder)
    t1, inside = maps.t1, maps.inside
    centre = apply_affine(t1.affine, np.argwhere(inside).mean(axis=0))
    spacings = [COARSEST_MM]
    while spacings[-1] > registration_spacing:
        spacings.append(max(spacings[-1] / 2, registration_spacing))
    comparison = coarsen(t1, COMPARISON_MM)
    grid = (comparison.affine, comparison.values.shape)
    brain = coarsen(Image(inside.astype(np.float32), t1.affine), 2.0)
    edge = brain.values > 0.5
    depth = ndimage.distance_transform_edt(edge) - ndimage.distance_transform_edt(~edge)
    # Distances are to the nearest voxel centre across the edge; the edge lies half a voxel nearer.
    depth = 2.0 * (depth - 0.5 * np.sign(depth))
    return Template(
        centre=centre,
        fine=_around(t1, inside, spacings[-1]),
        levels=tuple(_level(t1, centre, spacing) for spacing in spacings),
        t1=comparison,
        grey=resample(antialias(maps.grey, COMPARISON_MM), *grid),
        white=resample(antialias(maps.white, COMPARISON_MM), *grid),
        depth=Image(depth.astype(np.float32), brain.affine),
    )


def load(name: Literal["t1", "gm", "wm"]) -> Image:
    """A map of nilearn's template, 0..1."""
    return Image(*mni.load(name))


def read_maps(folder: Path | None) -> Maps:
    """The maps of a template. Raises UsageError where they are not those of a brain in MNI152."""
    if folder is None:
        t1 = load("t1")
        return Maps(t1, t1.values > 0, load("gm"), load("wm"))
    fingerprint(folder)  # names a file that is missing
    images = {name: _read(folder / name) for name in FILES}
    t1, mask, grey, white = images.values()
    for name, image in images.items():
        if image.values.shape != t1.values.shape or not np.allclose(
            image.affine, t1.affine, 0, 1e-3
        ):
            raise _unfit(
                folder / name,
                f"is on another grid than {FILES[0]}, {image.values.shape} voxels",
                f"{t1.values.shape} at the same place",
            )
    for name in FILES[2:]:
        low, high = images[name].values.min(), images[name].values.max()
        if low < -0.01 or high > 1.01:
            raise _unfit(folder / name, f"has values of {low:g} to {high:g}", "probabilities")
    inside = mask.values > 0.5
    known = load("t1")
    expected = known.values > 0
    found = resample(Image(inside.astype(np.float32), mask.affine), known.affine, expected.shape)
    both = (found.values > 0.5) & expected
    dice = 2 * both.sum() / ((found.values > 0.5).sum() + expected.sum())
    if dice < LEAST_OVERLAP:
        raise _unfit(
            folder / FILES[1],
            f"overlaps with the brain of MNI152 by a Dice of {dice:.2f}",
            f"at least {LEAST_OVERLAP:g}: scans are cut to a box in mm of that space",
        )
    brain = np.where(inside, t1.values - min(0, float(t1.values[inside].min())), 0)
    brain = (brain / brain.max()).astype(np.float32)
    tissues = [
        brain[inside & (image.values > least)] for image, least in ((white, WHITE), (grey, GREY))
    ]
    if not all(values.size for values in tissues) or tissues[0].mean() <= tissues[1].mean():
        raise _unfit(
            folder / FILES[0],
            f"is not brighter where {FILES[3]} has white matter than where {FILES[2]} has grey",
            "a T1-weighted template, and the two not exchanged",
        )
    return Maps(Image(brain, t1.affine), inside, grey, white)


def _read(path: Path) -> Image:
    try:
        return read(path)
    except (OSError, UnusableScanError) as error:
        raise _unfit(path, f"is unusable: {error}", "a NIfTI volume") from error


def _unfit(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(
        f"preprocess.template: {path} {found}; expected {expected}. Mend the file, or remove the "
        "key for the template that comes with nilearn."
    )


def _around(t1: Image, inside: Mask, spacing: float) -> Image:
    """The image on a grid that reaches at least ``MARGIN_MM`` beyond the brain."""
    places = apply_affine(t1.affine, np.argwhere(inside))
    low, high = places.min(axis=0) - MARGIN_MM, places.max(axis=0) + MARGIN_MM
    shape = 2 * np.ceil((high - low) / spacing / 2).astype(int)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high - spacing * (shape - 1)) / 2
    return resample(antialias(t1, spacing), affine, shape.tolist())


def _level(t1: Image, centre: Array, spacing: float) -> Level:
    coarse = coarsen(t1, spacing)
    # One voxel beyond the brain, where its edge shows.
    voxels = np.argwhere(ndimage.binary_dilation(coarse.values > 0.1))
    if len(voxels) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(voxels), MOST_POINTS, replace=False)
        voxels = voxels[np.sort(chosen)]
    points = apply_affine(coarse.affine, voxels) - centre
    return Level(spacing, points.astype(np.float32), coarse.values[tuple(voxels.T)])
