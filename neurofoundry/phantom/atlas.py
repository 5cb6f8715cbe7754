"""Maps of the average head in MNI space from which every synthetic head is drawn.

The brain comes from the ICBM 2009a nonlinear symmetric template that ships inside nilearn (T1w,
grey and white matter probabilities, 1 mm). That template is skull-stripped: everything outside the
brain is modelled here with signed distances in millimetres, negative inside.

Coordinates are MNI millimetres (x right, y anterior, z superior). Maps are float32 arrays of shape
(nx, ny, nz, channels), so that one access reads all channels of a voxel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom.lattice import Array, LatticeMap, Triple, lattice_axes
from neurofoundry.phantom.outside import bump, capsule, ellipsoid, face_map, shell_map
from neurofoundry.runtime.files import atomic, write_json

BRAIN_CHANNELS = (
    "csf",
    "white",
    "sulcus",
    "ventricle",
    "hippocampus",
    "medial_temporal",
    "periventricular",
    "deep",
)

# Left hippocampus from head to tail: centre (mm) and radius (mm), read off the template.
_HIPPOCAMPUS = (
    (22.0, -8.0, -20.0, 7.0),
    (27.0, -15.0, -18.5, 6.5),
    (29.0, -22.0, -15.0, 6.0),
    (28.0, -29.0, -10.5, 5.5),
    (25.0, -35.0, -5.5, 5.0),
    (19.0, -39.0, 0.0, 4.0),
)
_PUSH_MARGIN = 16
_MAPS = ("brain", "shell", "face", "push")


@dataclass(frozen=True)
class Atlas:
    """Everything about the average head: brain maps, shell and face distances, push fields.

    ``push`` holds two displacement directions (ventricle x, y, z, then hippocampus x, y, z): moving
    the sampled point along them enlarges the ventricles or shrinks the hippocampi. Its last channel
    is 1 in the brain and fades to 0 over 8 mm outside.
    """

    brain: LatticeMap
    shell: LatticeMap
    face: LatticeMap
    push: LatticeMap
    centre: Triple

    def save(self, folder: Path) -> None:
        """Write the maps as .npy files, which worker processes then share as memory maps."""
        folder.mkdir(parents=True, exist_ok=True)
        meta: dict[str, object] = {"centre": self.centre}
        for name in _MAPS:
            lattice: LatticeMap = getattr(self, name)
            with atomic(folder / f"{name}.npy") as temporary:
                np.save(temporary, lattice.values)
            meta[name] = {"origin": lattice.origin, "spacing": lattice.spacing}
        write_json(folder / "atlas.json", meta)

    @staticmethod
    def load(folder: Path) -> Atlas:
        """Read what `save` wrote; arrays are memory-mapped."""
        meta = json.loads((folder / "atlas.json").read_text())
        maps = {
            name: LatticeMap(
                values=np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")),
                origin=tuple(meta[name]["origin"]),
                spacing=meta[name]["spacing"],
            )
            for name in _MAPS
        }
        return Atlas(centre=tuple(meta["centre"]), **maps)


@dataclass(frozen=True)
class _Template:
    """The ICBM 2009a template at 1 mm, cropped to the brain: arrays of one shape."""

    t1: Array
    grey: Array
    white: Array
    inside: NDArray[np.bool_]
    low: Triple
    """Where the first voxel lies, mm."""


def build_atlas(detail_mm: Literal[1, 2]) -> Atlas:
    """Derive the maps from nilearn's template; brain maps have a spacing of ``detail_mm``.

    Takes some seconds. Template: Fonov et al., NeuroImage 54 (2011) 313-327.
    """
    template = _load_template()
    inside, low = template.inside, template.low
    axes = lattice_axes(low, inside.shape, 1.0)
    channels = _brain_channels(template, *axes)
    brain = np.stack([channels[name] for name in BRAIN_CHANNELS], axis=-1)
    brain_low = low
    if detail_mm == 2:
        blocks = (size for n in inside.shape for size in (n // 2, 2))
        brain = brain.reshape(*blocks, len(channels)).mean(axis=(1, 3, 5))
        brain_low = (low[0] + 0.5, low[1] + 0.5, low[2] + 0.5)
    centre_x, centre_y, centre_z = (
        round(float((axis * inside).sum() / inside.sum()), 1) for axis in axes
    )
    return Atlas(
        brain=LatticeMap(np.ascontiguousarray(brain, np.float32), brain_low, float(detail_mm)),
        shell=shell_map(inside, low),
        face=face_map(),
        push=_push(channels["ventricle"], channels["hippocampus"], inside, low),
        centre=(centre_x, centre_y, centre_z),
    )


def _load_template() -> _Template:
    # nilearn takes seconds to import, and workers read the maps from disk.
    from nilearn import datasets

    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    t1, grey, white, mask = (np.asarray(image.dataobj, np.float32) for image in images)
    # Even sizes let 2 mm maps be plain block averages.
    box = tuple(
        slice(max(0, side.start - 4) & ~1, (side.stop + 5) & ~1)
        for side in ndimage.find_objects((mask > 0).astype(np.int8))[0]
    )
    x, y, z = (
        float(offset) + side.start
        for offset, side in zip(images[0].affine[:3, 3], box, strict=True)
    )
    return _Template(t1[box], grey[box], white[box], mask[box] > 0, (x, y, z))


def _brain_channels(template: _Template, x: Array, y: Array, z: Array) -> dict[str, Array]:
    """Return ``BRAIN_CHANNELS`` by name, at 1 mm."""
    grey, white, inside = template.grey, template.white, template.inside
    csf = np.where(inside, np.clip(1 - grey - white, 0, 1), np.float32(1))
    ventricle = _ventricles(csf, x, y, z)
    soft_ventricle = ndimage.gaussian_filter(ventricle, 3.0, truncate=3.0)
    deep = _deep(x, y, z)
    return {
        "csf": csf,
        "white": _whiteness(template.t1, white, deep),
        "sulcus": _sulci(template.t1, inside) + _folia(x, y, z),
        "ventricle": ventricle,
        "hippocampus": _hippocampus(x, y, z) * np.clip(2 * grey, 0, 1),
        "medial_temporal": _medial_temporal(x, y, z),
        "periventricular": np.clip(3 * soft_ventricle, 0, 1) * white,
        "deep": deep,
    }


def _sulci(t1: Array, inside: Array) -> Array:
    """Return valleys of T1 intensity (-1..1): sulci that averaging many brains has filled in."""
    filled = np.where(inside, t1, np.float32(0.28))
    around = ndimage.gaussian_filter(filled, 2.5, truncate=2.5)
    depth: Array = np.clip((around - filled) / np.float32(0.12), -1, 1)
    return depth


def _whiteness(t1: Array, white: Array, deep: Array) -> Array:
    """Sharpen the white matter probability; in deep structures use the template's own shade."""
    blurred: Array = ndimage.gaussian_filter(white, 2.0, truncate=2.5)
    sharp = white + np.float32(0.7) * (white - blurred)
    # Deep grey matter and brainstem mix grey and white, and T1 says how much. The factor undoes the
    # contrast that painting adds at the cortex.
    mixture = np.clip((t1 - np.float32(0.66)) / np.float32(0.21), 0, 1)
    shade: Array = np.float32(0.5) + np.float32(0.46) * (mixture - 0.5)
    return sharp + deep * (shade - sharp)


def _ventricles(csf: Array, x: Array, y: Array, z: Array) -> Array:
    """Return the probability (0..1) of lying in the lateral, third or fourth ventricle."""
    lateral = (np.abs(x) < 37) & (y > -60) & (y < 33) & (z > -6) & (z < 31)
    labels, _ = ndimage.label((csf > 0.5) & lateral)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    # Within this box the lateral ventricles are the largest piece by far.
    seed = labels == sizes.argmax()
    third = (np.abs(x) < 4) & (y > -25) & (y < 6) & (z > -10) & (z < 6)
    fourth = (np.abs(x) < 12) & (y > -56) & (y < -37) & (z > -48) & (z < -24)
    seed |= (csf > 0.5) & (third | fourth)
    return np.asarray(ndimage.binary_dilation(seed, iterations=2) * csf, np.float32)


def _hippocampus(x: Array, y: Array, z: Array) -> Array:
    """Return a soft indicator (0..1, 1 mm edge) of spheres joined by cones, on both sides."""
    cones = [capsule(np.abs(x), y, z, a, b) for a, b in pairwise(_HIPPOCAMPUS)]
    indicator: Array = np.clip(0.5 - np.minimum.reduce(cones), 0, 1)
    return indicator


def _medial_temporal(x: Array, y: Array, z: Array) -> Array:
    """Weigh where Alzheimer's atrophy widens sulci: medial temporal, temporoparietal, precuneus."""
    side = np.abs(x)
    weight: Array = np.maximum.reduce(
        [
            bump(side, y, z, (24, -14, -24), 16),
            0.7 * bump(side, y, z, (54, -20, -18), 18),
            0.7 * bump(side, y, z, (48, -58, 30), 18),
            0.6 * bump(side, y, z, (6, -58, 38), 16),
        ]
    )
    return weight


def _deep(x: Array, y: Array, z: Array) -> Array:
    """Return a soft indicator (0..1) of basal ganglia, thalamus and brainstem."""
    nuclei = ellipsoid(np.abs(x), y, z, (14, -8, 4), (21, 32, 15))
    stem = capsule(x, y, z, (0, -20, -6, 15), (0, -44, -68, 13))
    return np.clip(0.5 - np.minimum(nuclei, stem) / 5, 0, 1).astype(np.float32)


def _folia(x: Array, y: Array, z: Array) -> Array:
    """Return fissures of the cerebellum (0..1), lost in the average brain: a fan of leaves."""
    cerebellum = np.clip(-ellipsoid(np.abs(x), y, z, (18, -62, -42), (34, 32, 23)) / 4, 0, 1)
    turns = np.arctan2(z + 32, y + 42) / (2 * np.pi) * 52 + 0.06 * np.abs(x)
    ridge = np.abs(2 * (turns % 1) - 1)
    return np.asarray(cerebellum * 0.9 * np.clip(2.5 * ridge - 1.5, 0, 1), np.float32)


def _push(
    ventricle: Array, hippocampus: Array, inside: NDArray[np.bool_], low: Triple
) -> LatticeMap:
    """Return displacement directions, of length 1 at most.

    They point to the middle of the ventricles, and away from the hippocampi.
    """
    # Fields must have died away at the lattice's border, which is repeated beyond.
    ventricle, hippocampus = (np.pad(a, _PUSH_MARGIN) for a in (ventricle, hippocampus))
    fields = []
    for target, width, sign in ((ventricle, 10.0, 1.0), (hippocampus, 4.0, -1.0)):
        soft = ndimage.gaussian_filter(target, width, truncate=2.5)[::4, ::4, ::4]
        field = np.stack(np.gradient(soft), axis=-1) * sign
        fields.append(field / np.sqrt((field**2).sum(axis=-1)).max())
    outside = np.pad(~inside, _PUSH_MARGIN, constant_values=True)[::4, ::4, ::4]
    near = 1 - ndimage.distance_transform_edt(outside) * 4 / 8
    fields.append(np.clip(near, 0, 1)[..., None])
    values = np.concatenate(fields, axis=-1)
    start = (low[0] - _PUSH_MARGIN, low[1] - _PUSH_MARGIN, low[2] - _PUSH_MARGIN)
    return LatticeMap(np.ascontiguousarray(values, np.float32), start, 4.0)
