"""Heads to make views of, and draws of their parameters."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.nn import augment
from neurofoundry.nn.augment import Draws
from neurofoundry.nn.augment.params import AugmentParams

SHAPE = (20, 28, 24)  # z, y, x: no two alike, so that mixed-up axes show
PLAIN = {"gamma": 1.0, "remap": 0.0, "bias": 0.0, "blur": 0.0, "coarse": 1.0, "noise": 0.0}
GEOMETRY = AugmentParams.model_validate(PLAIN)
STILL = AugmentParams.model_validate(
    {**PLAIN, "crop": (1, 1), "stretch": 1, "flip": 0, "rotation": 0}
)
PAPER = AugmentParams(preset="paper")


def heads(batch: int = 2, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Ellipsoids of smooth texture, z-scored, background 0."""
    random = np.random.default_rng(8)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    mask = (z / 0.8) ** 2 + (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1
    volumes = []
    for _ in range(batch):
        texture = ndimage.gaussian_filter(random.standard_normal(shape), 1.0)
        volumes.append(numpy_standardize(texture, mask))
    return torch.tensor(np.array(volumes), dtype=torch.float32)[:, None]


def numpy_standardize(volume: NDArray, mask: NDArray) -> NDArray:
    inside = volume[mask]
    return np.where(mask, (volume - inside.mean()) / inside.std(), 0)


def draw(
    params: AugmentParams,
    *scans: str,
    view: int = 0,
    epoch: int = 0,
    seed: int = 1,
    shape: tuple[int, int, int] = SHAPE,
) -> Draws:
    return augment.draw(params, seed=seed, epoch=epoch, scans=scans, view=view, shape=shape)


def in_voxels(affine: torch.Tensor, shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray, NDArray]:
    """Matrix and offset from a view's to the volume's voxel indices, in the order z y x."""
    size = np.array(shape[::-1])
    matrix, shift = affine[:, :3].double().numpy(), affine[:, 3].double().numpy()
    linear = size[:, None] * matrix / size
    offset = (matrix @ (1 / size - 1) + shift + 1) * size / 2 - 0.5
    return linear[::-1, ::-1], offset[::-1]
