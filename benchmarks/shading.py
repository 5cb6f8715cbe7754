"""How much of a known shading is left after N4: within the surface's mask, and the settled one's.

    python benchmarks/shading.py --phantoms 4 --seed 3 [HEAD.nii.gz …]

Each head is made brighter from left to right, by exp(0.4) at one side of the view and exp(-0.4) at
the other, and its brain is found and placed with N4. Printed is the standard deviation of what is
left of the field's logarithm over the brain, as a share of the field's. The brain of a phantom is
the true one and its own field counts as known; a real head's is the settled one, and what N4 finds
without the shading is subtracted. Expected: at most 0.4 in most, about half of what the surface's
mask leaves. About 4 s of CPU a phantom and 7 s a real head.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import apply_affine

from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head
from neurofoundry.preprocess import bias, template
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import place
from neurofoundry.preprocess.resample import Array, Image, Mask
from neurofoundry.preprocess.template import Template

PARAMS = PreprocessParams(bias_correction="n4")
SLOPE = 0.4


def main() -> None:
    """Print a line a head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--phantoms", type=int, default=4)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepared = template.build(PARAMS.registration_spacing)
    print(f"{'':12}{'surface':>10}{'settled':>10}")
    for number, (scan, inside, own) in enumerate(_phantoms(arguments.phantoms, arguments.seed)):
        _report(f"phantom {number}", _left(scan, inside, own, prepared))
    for number, path in enumerate(arguments.heads):
        _report(f"head {number}", _left(read_scan(path), None, None, prepared))


def _left(
    scan: Image, inside: Mask | None, own: Array | None, prepared: Template
) -> tuple[float, float]:
    """Return what is left of the shading after the first N4 and after the second."""
    across = SLOPE * np.linspace(-1, 1, scan.values.shape[0])[:, None, None]
    shaded = Image((scan.values * np.exp(across)).astype(np.float32), scan.affine)
    first, second = _brains(shaded, prepared)
    if inside is None:
        voxels, affine = np.argwhere(second.inside), second.head.affine
    else:
        voxels, affine = np.argwhere(inside), scan.affine
    points = apply_affine(affine, voxels)
    column = apply_affine(np.linalg.inv(scan.affine), points)[:, 0]
    true = SLOPE * (2 * column / (scan.values.shape[0] - 1) - 1)
    if inside is not None and own is not None:
        true = true + np.log(own[inside])
    before = (None, None) if own is not None else _brains(scan, prepared)
    shares = []
    for brain, without in zip((first, second), before, strict=True):
        found = _log(brain, points) - (0 if without is None else _log(without, points))
        shares.append(float((found - true).std() / true.std()))
    return shares[0], shares[1]


def _brains(scan: Image, prepared: Template) -> tuple[Brain, Brain]:
    first = find_brain(scan, PARAMS)
    ((_, second),) = place([first], [first.intensities()], PARAMS, prepared)
    return first, second


def _log(brain: Brain, points: Array) -> Array:
    if brain.log_bias is None:
        raise RuntimeError("N4 did not run")
    log: Array = np.log(bias.bias_at(brain.log_bias, points)).astype(np.float64)
    return log


def _phantoms(count: int, seed: int) -> Iterator[tuple[Image, Mask, Array]]:
    atlas = build_atlas(2)
    for index in range(count):
        subject = sample_subject(PhantomParams(seed=seed), index)
        made = head(subject, subject.sessions[0][0], SITES[subject.site], atlas, 3.0)
        yield Image(made.image.astype(np.float32), made.affine), made.brain, made.bias


def _report(name: str, left: tuple[float, float]) -> None:
    print(f"{name:12}{left[0]:>10.2f}{left[1]:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
