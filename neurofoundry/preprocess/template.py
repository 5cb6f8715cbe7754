"""The template as registration and quality control need it: nilearn's, or one in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts import mni
from neurofoundry.errors import UsageError
from neurofoundry.preprocess.load import UnusableScanError, read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.registration import Level
from neurofoundry.preprocess.resample import Array, Image, Mask, antialias, coarsen, resample
from neurofoundry.runtime.files import hash_file

COMPARISON_MM = 4.0
"""Spacing at which a registered scan is compared with the template, whatever the parameters:
the bounds of quality hold at this resolution."""
COARSEST_MM = 16.0
MARGIN_MM = 12.0
"""Space around the brain, where the displacements of syn come to rest."""

FILES = ("t1.nii.gz", "mask.nii.gz", "gm.nii.gz", "wm.nii.gz")
"""A template in a folder: the head or the brain, the brain's mask, and tissue probabilities."""
LEAST_OVERLAP = 0.8
"""Dice of its brain with nilearn's: 0.95 and more in MNI152, less in another space."""
GREY, WHITE = 0.6, 0.8
"""Probability from which a voxel of the template counts as tissue."""


@dataclass(frozen=True)
class Maps:
    """The maps of a template, all on one grid."""

    t1: Image
    """Intensity, 0..1, of the brain alone."""
    inside: Mask
    grey: Image
    white: Image


@dataclass(frozen=True)
class Template:
    """What scans are compared with: built once, and handed to every worker."""

    centre: Array
    """Centroid of the brain, mm."""
    levels: tuple[Level, ...]
    """The template as registration sees it, coarse to fine."""
    judged: Level
    """The one at which orientations are told apart, at ``COMPARISON_MM``."""
    within: Level
    """The finest without the edge of the brain, which lies elsewhere in every shrunken brain."""
    fine: Image
    """Intensity, 0..1, around the brain at the spacing of registration; even numbers of voxels."""
    t1: Image
    grey: Image
    white: Image
    """Intensity and tissue probabilities at ``COMPARISON_MM``, 0..1."""
    depth: Image
    """Signed distance to the edge of the brain in mm, positive inside, at 2 mm."""


def find(params: PreprocessParams, data: Path) -> Path | None:
    """Return the folder of the template that the parameters name; None for nilearn's.

    A relative path starts at the raw data's folder.
    """
    return None if params.template is None else data / params.template


def fingerprint(folder: Path | None) -> dict[str, str]:
    """Return the hash of a template's files, which decide a scan's files; empty for nilearn's.

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
    """Read a template, nilearn's without a folder, and derive what workers need. About 1 s."""
    maps = read_maps(folder)
    t1, inside = maps.t1, maps.inside
    centre = apply_affine(t1.affine, np.argwhere(inside).mean(axis=0))
    comparison = coarsen(t1, COMPARISON_MM)
    grid = (comparison.affine, comparison.values.shape)
    brain = coarsen(Image(inside.astype(np.float32), t1.affine), 2.0)
    edge = brain.values > 0.5
    depth = ndimage.distance_transform_edt(edge) - ndimage.distance_transform_edt(~edge)
    # Distances are to the nearest voxel centre across the edge; the edge lies half a voxel nearer.
    depth = 2.0 * (depth - 0.5 * np.sign(depth))
    return Template(
        centre=centre,
        fine=_around(t1, inside, registration_spacing),
        levels=levels_of(t1, centre, registration_spacing),
        judged=_level(t1, centre, COMPARISON_MM),
        within=_within(t1, inside, centre, registration_spacing),
        t1=comparison,
        grey=resample(antialias(maps.grey, COMPARISON_MM), *grid),
        white=resample(antialias(maps.white, COMPARISON_MM), *grid),
        depth=Image(depth.astype(np.float32), brain.affine),
    )


def levels_of(image: Image, centre: Array, finest: float) -> tuple[Level, ...]:
    """Return a brain (0..1, centred on ``centre``) as registration sees it, coarse to fine: each
    level has half the spacing of the one before, down to ``finest`` mm."""
    spacings = [COARSEST_MM]
    while spacings[-1] > finest:
        spacings.append(max(spacings[-1] / 2, finest))
    return tuple(_level(image, centre, spacing) for spacing in spacings)


def load(name: Literal["t1", "gm", "wm"]) -> Image:
    """Return a map of nilearn's template, 0..1."""
    return Image(*mni.load(name))


def read_maps(folder: Path | None) -> Maps:
    """Read the maps of a template, nilearn's without a folder.

    Raises UsageError where they are not those of a brain in MNI152 space.
    """
    if folder is None:
        t1 = load("t1")
        return Maps(t1, t1.values > 0, load("gm"), load("wm"))
    fingerprint(folder)  # names a file that is missing
    images = {name: _read(folder / name) for name in FILES}
    _check_grids(images, folder)
    _check_probabilities(images, folder)
    t1, mask, grey, white = images.values()
    _check_space(mask, folder / FILES[1])
    inside = mask.values > 0.5
    brain = np.where(inside, t1.values - min(0, float(t1.values[inside].min())), 0)
    brain = (brain / brain.max()).astype(np.float32)
    _check_contrast(
        brain[inside & (white.values > WHITE)], brain[inside & (grey.values > GREY)], folder
    )
    return Maps(Image(brain, t1.affine), inside, grey, white)


def _read(path: Path) -> Image:
    try:
        return read_scan(path)
    except (OSError, UnusableScanError) as error:
        raise _unfit(path, f"is unusable: {error}", "a NIfTI volume") from error


def _check_grids(images: Mapping[str, Image], folder: Path) -> None:
    first = images[FILES[0]]
    for name, image in images.items():
        same_shape = image.values.shape == first.values.shape
        if not same_shape or not np.allclose(image.affine, first.affine, 0, 1e-3):
            raise _unfit(
                folder / name,
                f"is on another grid than {FILES[0]}, {image.values.shape} voxels",
                f"{first.values.shape} at the same place",
            )


def _check_probabilities(images: Mapping[str, Image], folder: Path) -> None:
    for name in FILES[2:]:
        low, high = images[name].values.min(), images[name].values.max()
        if low < -0.01 or high > 1.01:
            raise _unfit(folder / name, f"has values of {low:g} to {high:g}", "probabilities")


def _check_space(mask: Image, path: Path) -> None:
    known = load("t1")
    expected = known.values > 0
    inside = Image((mask.values > 0.5).astype(np.float32), mask.affine)
    inside_known = resample(inside, known.affine, expected.shape).values > 0.5
    dice = 2 * (inside_known & expected).sum() / (inside_known.sum() + expected.sum())
    if dice < LEAST_OVERLAP:
        raise _unfit(
            path,
            f"overlaps with the brain of MNI152 by a Dice of {dice:.2f}",
            f"at least {LEAST_OVERLAP:g}: scans are cut to a box in mm of that space",
        )


def _check_contrast(white: NDArray[np.float32], grey: NDArray[np.float32], folder: Path) -> None:
    if not (white.size and grey.size) or white.mean() <= grey.mean():
        raise _unfit(
            folder / FILES[0],
            f"is not brighter where {FILES[3]} has white matter than where {FILES[2]} has grey",
            "a T1-weighted template, and the two maps not swapped",
        )


def _unfit(path: Path, fault: str, expected: str) -> UsageError:
    return UsageError(
        f"preprocess.template: {path} {fault}; expected {expected}. Fix the file, or remove the "
        "key to use the template that comes with nilearn."
    )


def _around(t1: Image, inside: Mask, spacing: float) -> Image:
    """Return the image on a grid that reaches at least ``MARGIN_MM`` beyond the brain."""
    places = apply_affine(t1.affine, np.argwhere(inside))
    low, high = places.min(axis=0) - MARGIN_MM, places.max(axis=0) + MARGIN_MM
    shape = 2 * np.ceil((high - low) / spacing / 2).astype(int)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = (low + high - spacing * (shape - 1)) / 2
    return resample(antialias(t1, spacing), affine, shape.tolist())


def _within(t1: Image, inside: Mask, centre: Array, spacing: float) -> Level:
    brain = coarsen(Image(inside.astype(np.float32), t1.affine), spacing).values > 0.5
    return Level.of(coarsen(t1, spacing), brain, centre, spacing)


def _level(image: Image, centre: Array, spacing: float) -> Level:
    coarse = coarsen(image, spacing)
    # One voxel beyond the brain, where its edge shows.
    return Level.of(coarse, ndimage.binary_dilation(coarse.values > 0.1), centre, spacing)
