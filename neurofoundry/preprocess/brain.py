"""The brain of a scan: found in the scan alone, then corrected by the template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.preprocess import bias, mask_command, surface
from neurofoundry.preprocess.load import UnusableScanError
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, Mask, coarsen, resample

EMPTY_SHARE, STRIPPED_ML = 0.5, (600.0, 2200.0)
"""What tells a scan that shows a brain alone. Heads have 2500 ml and more."""
EMPTY, RIPPLE = 1e-3, 0.05
"""How far from the value outside, as a share of the brightest, a voxel is still empty, and how far
from it the ripples of splines reach around a stripped brain."""
AMID, DARKEST = 0.2, 0.1
"""Share of a stripped brain that is darker than its surroundings where they have a value from the
middle of its own; percentile of it that is its darkest but for outliers."""
LEAST_SHARE = 0.4
"""Share of the template's brain below which a scan does not show one there."""
SETTLED_MM = 2.0
"""Voxels in which a brain is told from what it touches: bridges to it are 6 mm wide."""
DEEP_MM, CORE_MM = 10.0, 14.0
"""Depths within the template's edge: from the first on a scan shows next to nothing but brain, from
the second on all is brain, a lesion or a ventricle too."""
SLICES_MM, OUTSIDE_MM, DARK = (3.0, 4.0), (5.0, 2.0), (0.43, 0.5)
"""Up to the first thickness of slices and from the second one on: how far beyond the template's
edge a brain may reach, and the brightness of fluid and bone relative to the deep brain's. Thick
slices mix the dark between brain and scalp with both. Four old heads in slices of 4 mm and 6 mm,
along each axis, have a Dice of 0.969 and 0.963 so, and of 0.946 and 0.927 with the first values."""
BRIGHT = 1.5
"""Fat and vessels, relative to the deep brain's brightness. They are told from brain only where the
template has no brain."""
BRIDGE_MM, REGAIN_MM, SULCUS_MM = 3.0, 4.1, 4.1
"""Half the width of what connects the brain to its surroundings, how far from what is left of the
brain then it is regained, and half the width of sulci that count as brain."""


@dataclass(frozen=True)
class Brain:
    """A brain as the scan alone shows it."""

    head: Image
    """The scan as registration needs it: coarse, and without shading."""
    inside: Mask
    """The brain's voxels of ``head``."""
    surface: Array
    """Vertices (v, 3) of the brain's surface, mm of the scan."""
    mask: Image | None
    """Where it is known better than by the surface."""
    log_bias: Image | None
    """Logarithm of the shading that was removed from ``head``."""
    slices_mm: float = 0.0
    """The longest edge of the scan's voxels."""
    zero: float = 0.0
    """The darkest intensity of the scan, which shading does not change."""
    settled: bool = False
    """Whether the mask is what the template has made of the surface."""

    def brightness(self) -> tuple[np.floating, np.floating]:
        """Return the intensity of the background, and the highest of the brain but for outliers."""
        values = self.head.values
        return np.percentile(values, 2), np.percentile(values[self.inside], 99.5)

    def intensities(self) -> Image:
        """Return the brain alone, 0..1, and 0 outside. Raises UnusableScanError if it is empty."""
        head = self._in_head()
        return Image(head.values * self.inside, head.affine)

    def as_scanned(self) -> Brain:
        """Return the brain with its shading."""
        if self.log_bias is None:
            return self
        shading = Image(-self.log_bias.values, self.log_bias.affine)
        return replace(self, head=bias.correct(self.head, shading, self.zero), log_bias=None)

    def uncut(self) -> Image:
        """Return what a mask of our own has not decided, 0..1: the whole head, or the brain whose
        mask was given."""
        given = self.mask is not None and not self.settled
        return self.intensities() if given else self._in_head()

    def _in_head(self) -> Image:
        if not self.inside.any():
            raise UnusableScanError("no brain: the surface that should hold it is empty")
        low, high = self.brightness()
        if high <= low:
            raise UnusableScanError("no brain: what should be it is as dark as the background")
        values = ((self.head.values - low) / (high - low)).clip(0, 1)
        return Image(values.astype(np.float32), self.head.affine)

    def centroid(self) -> Array:
        """Return the brain's centre, (3,), mm of the scan."""
        centre: Array = apply_affine(self.head.affine, np.argwhere(self.inside).mean(axis=0))
        return centre


def find_brain(scan: Image, params: PreprocessParams) -> Brain:
    """Find the brain as the parameters say. Raises UnusableScanError where there is none.

    Its shading is removed whatever they say: it draws the registration to where a head is bright.
    """
    spacing = min(SETTLED_MM, params.registration_spacing)
    mask = stripped(scan) if params.mask is None else mask_command.run(scan, params.mask)
    if mask is not None and params.mask is None:
        scan = _on_its_darkest(scan, mask.values > 0)
    elif mask is None:
        scan = _without_undershoot(scan)
    background = float(scan.values.min())
    head = coarsen(scan, spacing, outside=background)
    if mask is None:
        vertices = _find_surface(coarsen(head, surface.SPACING_MM, outside=background))
        inside = surface.fill(vertices, head.affine, head.values.shape)
    else:
        vertices = surface.wrap(mask)
        inside = resample(mask, head.affine, head.values.shape).values > 0.5
    slices = float(voxel_sizes(scan.affine).max())
    return _unshaded(Brain(head, inside, vertices, mask, None, slices, background))


def _unshaded(brain: Brain) -> Brain:
    log_bias = bias.estimate(brain.head, brain.inside, brain.zero)
    head = bias.correct(brain.head, log_bias, brain.zero)
    return replace(brain, head=head, log_bias=log_bias)


def without_shading(brain: Brain) -> Brain:
    """Return a settled brain without the shading that it shows still.

    N4 looks for one histogram all over the brain. The surface leaves out a part of the cortex and
    holds fluid, here more and there less, and that hides half of a field from it.
    """
    if brain.log_bias is None or not brain.settled:
        return brain
    left = bias.estimate(brain.head, brain.inside, brain.zero)
    both = bias.together(brain.log_bias, left)
    return replace(brain, head=bias.correct(brain.head, left, brain.zero), log_bias=both)


def elsewhere(brain: Brain) -> Iterator[Brain]:
    """Yield the brain as its surface grows where other directions of the scan are up.

    Nothing of a brain whose mask was given, and of directions in which no head is seen.
    """
    if brain.mask is not None and not brain.settled:
        return
    brain = brain.as_scanned()  # The shading was that of what the first surface held.
    coarse = coarsen(brain.head, surface.SPACING_MM, outside=float(brain.head.values.min()))
    for up in surface.DIRECTIONS[1:]:
        try:
            vertices = surface.find_surface(coarse, up)
        except UnusableScanError:
            continue
        inside = surface.fill(vertices, brain.head.affine, brain.head.values.shape)
        if inside.any():
            found = replace(brain, inside=inside, surface=vertices, mask=None, settled=False)
            yield _unshaded(found)


def stripped(scan: Image) -> Image | None:
    """Return the mask of a scan that others have skull-stripped; None for any other scan.

    A stripped scan has one value wherever there is no brain, and shows nothing larger than one.
    Splines that have resampled it leave ripples around that value, above and below.
    """
    apart = np.abs(scan.values - np.float32(surroundings(scan)))
    top = float(np.percentile(apart, 99.5))
    shown = apart > EMPTY * top
    if 1 - shown.mean() < EMPTY_SHARE:
        return None
    # Of what is shown, not of what is bright: a head with dark skull would be as small as a brain.
    ml = _solid(shown).sum() * abs(np.linalg.det(scan.affine[:3, :3])) / 1000
    if not STRIPPED_ML[0] <= ml <= STRIPPED_ML[1]:
        return None
    clear = apart > RIPPLE * top
    darker = clear & (scan.values < surroundings(scan))
    # White matter may then be as bright as the surroundings, and no ripple can be told from it.
    amid = darker.sum() > AMID * clear.sum()
    return Image(_solid(shown if amid else clear).astype(np.float32), scan.affine)


def _on_its_darkest(scan: Image, inside: Mask) -> Image:
    """Return a stripped scan with its surroundings as dark as the darkest of the brain ``inside``.

    What is darker than they are is ripples, unless much of the brain is: in z-scores and in scans
    from -1 to 1 the surroundings have a value from the middle of the brain's.
    """
    around, brain = surroundings(scan), scan.values[inside]
    if (brain < around).mean() > AMID:
        around = float(np.percentile(brain, DARKEST))
    values = np.where(inside, scan.values, np.float32(around))
    return Image(np.maximum(values, np.float32(around)), scan.affine)


def _without_undershoot(scan: Image) -> Image:
    """Return a scan with nothing much darker than its darkest voxels but for a hundredth: splines
    that have resampled it undershoot beside what is bright, and air would look like fluid."""
    low, top = np.percentile(scan.values, [1, 99.5])
    if scan.values.min() >= low - RIPPLE * (top - low):
        return scan
    return Image(np.maximum(scan.values, np.float32(low)), scan.affine)


def _solid(mask: Mask) -> Mask:
    solid: Mask = ndimage.binary_fill_holes(largest_component(mask))
    return solid


def surroundings(scan: Image) -> float:
    """Return the value around what a scan shows: the median at the faces of its view."""
    faces = [np.take(scan.values, [0, -1], axis=axis).ravel() for axis in range(3)]
    return float(np.median(np.concatenate(faces)))


def largest_component(mask: Mask) -> Mask:
    """Return the largest connected component of a mask; nothing of an empty one."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest: Mask = mask & (labels == sizes.argmax())
    return largest


def settle(brain: Brain, depth: NDArray[np.float32]) -> Brain:
    """Return the brain where the template says it lies, as far as the scan shows brain there.

    ``depth`` is the signed distance, mm, to the template's edge, positive inside, at the voxels of
    ``brain.head``. A mask that was given stays, and so does a brain that does not show there.
    """
    if brain.mask is not None and not brain.settled:
        return brain
    dark = float(brain.brightness()[0])
    inside = tissue_of_brain(brain.head, depth, dark, brain.slices_mm)
    if inside.sum() < LEAST_SHARE * (depth > 0).sum() or not inside.any():
        return brain
    mask = Image(inside.astype(np.float32), brain.head.affine)
    return replace(brain, inside=inside, mask=mask, settled=True)


def tissue_of_brain(
    head: Image, depth: NDArray[np.float32], dark: float, slices_mm: float = 0.0
) -> Mask:
    """Return the brain's voxels with its narrow sulci: what is as bright as its middle, connected
    by more than a bridge, and not far beyond the template's edge. ``dark`` is the background."""
    inside: Mask = np.zeros(depth.shape, bool)
    near = depth > -np.interp(slices_mm, SLICES_MM, OUTSIDE_MM)
    if not (depth > DEEP_MM).any():
        return inside
    spacing = float(voxel_sizes(head.affine)[0])
    room = round(np.ceil(SULCUS_MM / spacing)) + 1
    box = tuple(
        slice(max(0, int(n.min()) - room), int(n.max()) + room + 1) for n in np.nonzero(near)
    )
    depth, near = depth[box], near[box]
    values = head.values[box] - dark
    typical = float(np.median(values[depth > DEEP_MM]))
    alike = (values > np.interp(slices_mm, SLICES_MM, DARK) * typical) & (
        (values < BRIGHT * typical) | (depth > 0)
    )
    tissue = (alike & near) | (depth > CORE_MM)
    bridge, regain, sulcus = (ball(mm / spacing) for mm in (BRIDGE_MM, REGAIN_MM, SULCUS_MM))
    core = largest_component(ndimage.binary_erosion(tissue, bridge))
    found = ndimage.binary_dilation(core, regain) & tissue
    closed = ndimage.binary_closing(np.pad(found, room), sulcus)
    filled = ~largest_component(~closed)
    inside[box] = filled[room:-room, room:-room, room:-room]
    return inside


def ball(radius: float) -> Mask:
    """Return the voxels within ``radius``, in voxels, of the middle one."""
    reach = int(radius)
    places = np.indices((2 * reach + 1,) * 3) - reach
    within: Mask = (places**2).sum(axis=0) <= radius**2
    return within


def _find_surface(head: Image) -> Array:
    """Return the surface with the scan's own direction up, or the first in which there is one."""
    for up in surface.DIRECTIONS[:-1]:
        with suppress(UnusableScanError):
            return surface.find_surface(head, up)
    return surface.find_surface(head, surface.DIRECTIONS[-1])
