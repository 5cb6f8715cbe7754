"""Where in the brain a model's output comes from: integrated gradients (Sundararajan et al., 2017).

The output for a scan is compared with that for a flat brain, which has the scan's mean intensity
everywhere. A map attributes the difference to the voxels, so that it sums to the difference. It
shows what the network used, not what the disease did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.finetune import subsets
from neurofoundry.finetune.network import Network, Reader
from neurofoundry.nn import encoders
from neurofoundry.runtime.arrays import key_of_arrays, write_arrays
from neurofoundry.tasks import Task

BLOCKS = Grid(spacing=6.0)
"""The grid of the maps: every standard grid divides it, and single voxels mean little."""

Score = Callable[[Tensor], Tensor]
"""A function from z-scores (batch, 1, z, y, x) to one number per scan, (batch,)."""


def flat(scan: Tensor) -> Tensor:
    """Return the brain (1, channels, z, y, x) with the mean intensity of each contrast everywhere;
    the background stays 0."""
    return torch.stack(
        [
            torch.where(contrast != 0, contrast[contrast != 0].mean(), 0.0)
            for contrast in scan.unbind(1)
        ],
        1,
    )


def integrated_gradients(
    score: Score, scan: Tensor, base: Tensor, steps: int, *, size: int = 8
) -> Tensor:
    """Return the attribution of every voxel of ``scan`` (1, channels, z, y, x) against ``base``.

    It is (scan − base) times the mean gradient on the straight line between them, by the midpoint
    rule, ``size`` points per batch. With enough steps it sums to score(scan) − score(base).
    """
    positions = (torch.arange(steps, device=scan.device) + 0.5) / steps
    mean_gradient = torch.zeros_like(scan)
    for start in range(0, steps, size):
        weights = positions[start : start + size, None, None, None, None]
        points = torch.lerp(base, scan, weights).requires_grad_()
        (gradients,) = torch.autograd.grad(score(points).sum(), points)
        mean_gradient += gradients.sum(dim=0, keepdim=True) / steps
    return (scan - base) * mean_gradient


def block_sums(values: NDArray[np.floating], grid: Grid) -> NDArray[np.float32]:
    """Sum voxels (z, y, x) of ``grid`` over the blocks of ``BLOCKS``, (x, y, z)."""
    edge = round(BLOCKS.spacing / grid.spacing)
    x, y, z = BLOCKS.shape
    blocks = values.astype(np.float64).reshape(z, edge, y, edge, x, edge)
    sums: NDArray[np.float32] = blocks.sum(axis=(1, 3, 5)).T.astype(np.float32)
    return sums


def write(
    folder: Path,
    network: Network,
    task: Task,
    *,
    rows: pd.DataFrame,
    read: Reader,
    grid: Grid,
    steps: int,
    count: int,
    size: int,
) -> None:
    """Write explanation.npz into a model's folder, unless it is there already.

    ``rows`` are the labelled scans of the task; up to ``count`` of split 'test' are explained, in
    ``steps`` steps. ``network`` gets the weights of the folder, and batches of ``size``. The arrays
    are ``scan_id`` (scans,), ``maps`` (scans, x, y, z) on the grid of ``spacing`` mm, ``answer``
    and ``flat`` (scans,), the outputs for the scans and for their flat brains, and the key
    ``made_of``.
    """
    path = folder / "explanation.npz"
    test = rows[rows["split"] == "test"]
    scan_ids = list(subsets.in_turn(test, task, count, key="explain")["scan_id"])
    content = json.dumps([(folder / "run.json").read_text(), steps, scan_ids])
    key = hashlib.sha256(content.encode()).hexdigest()
    if key_of_arrays(path) == key:
        return
    encoders.read_weights(folder / "model.safetensors", network)
    network.eval().requires_grad_(False)
    device = next(network.parameters()).device

    def score(volumes: Tensor) -> Tensor:
        return task.score(network(volumes))

    maps, answers, flat_answers = [], [], []
    for scan_id in scan_ids:
        scan = read([scan_id]).to(device).float() * SLOPE
        base = flat(scan)
        voxels = integrated_gradients(score, scan, base, steps, size=size)
        maps.append(block_sums(voxels[0].sum(0).cpu().numpy(), grid))
        with torch.no_grad():
            answers.append(score(scan).item())
            flat_answers.append(score(base).item())
    write_arrays(
        path,
        key=key,
        compress=True,
        scan_id=np.array(scan_ids, str),
        maps=np.stack(maps),
        spacing=np.array(BLOCKS.spacing),
        answer=np.array(answers),
        flat=np.array(flat_answers),
    )
