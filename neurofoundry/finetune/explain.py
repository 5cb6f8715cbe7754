"""Where in the brain a model's answer comes from: integrated gradients (Sundararajan et al., 2017).

The answer for a scan is compared with that for a flat brain, which has the mean intensity of this
one everywhere. A map shares the difference out among the voxels, so that its sum is the
difference. It shows what the network used, not what the disease did.
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
from neurofoundry.finetune.params import ExplainParams
from neurofoundry.nn import encoders
from neurofoundry.runtime.arrays import key_of_arrays, write_arrays
from neurofoundry.tasks import Task

BLOCKS = Grid(spacing=6.0)
"""What maps are kept on: every standard grid divides it, and single voxels say little."""

Score = Callable[[Tensor], Tensor]
"""From z-scores (batch, 1, z, y, x) to one number each."""


def flat(scan: Tensor) -> Tensor:
    """The same brain with its mean intensity everywhere; the background stays 0."""
    inside = scan != 0
    return torch.where(inside, scan[inside].mean(), 0.0)


def integrated_gradients(
    score: Score, scan: Tensor, base: Tensor, steps: int, *, size: int = 8
) -> Tensor:
    """The attribution of every voxel of ``scan`` (1, 1, z, y, x) against ``base``.

    (scan − base) times the gradient's mean on the straight line between them, by the midpoint
    rule, ``size`` points in a batch. With enough steps it sums to score(scan) − score(base).
    """
    places = (torch.arange(steps, device=scan.device) + 0.5) / steps
    gradient = torch.zeros_like(scan)
    for some in places.split(size):
        points = torch.lerp(base, scan, some[:, None, None, None, None]).requires_grad_()
        (found,) = torch.autograd.grad(score(points).sum(), points)
        gradient += found.sum(dim=0, keepdim=True) / steps
    return (scan - base) * gradient


def block_sums(values: NDArray[np.floating], grid: Grid) -> NDArray[np.float32]:
    """Voxels (z, y, x) of ``grid`` summed over those of ``BLOCKS``, (x, y, z)."""
    edge = round(BLOCKS.spacing / grid.spacing)
    x, y, z = BLOCKS.shape
    parts = values.astype(np.float64).reshape(z, edge, y, edge, x, edge)
    sums: NDArray[np.float32] = parts.sum(axis=(1, 3, 5)).T.astype(np.float32)
    return sums


def write(
    folder: Path,
    network: Network,
    task: Task,
    *,
    rows: pd.DataFrame,
    read: Reader,
    grid: Grid,
    params: ExplainParams,
    size: int,
) -> None:
    """Write explanation.npz for a model's folder, unless the one that is there is the same.

    ``rows`` are the labelled scans of the task; those of split 'test' are explained, as many as
    ``params`` say. ``network`` gets the weights of the folder, and batches of ``size``. Arrays:
    ``scan_id`` (scans,); ``maps`` (scans, x, y, z) on the grid of ``spacing`` mm; ``answer`` and
    ``flat`` (scans,), for the scan and for its flat brain; ``made_of``, by which a file is known
    to be the same.
    """
    path = folder / "explanation.npz"
    test = rows[rows["split"] == "test"]
    scan_ids = list(subsets.in_turn(test, task, params.scans, key="explain")["scan_id"])
    content = json.dumps([(folder / "run.json").read_text(), params.steps, scan_ids])
    made_of = hashlib.sha256(content.encode()).hexdigest()
    if key_of_arrays(path) == made_of:
        return
    encoders.read_weights(folder / "model.safetensors", network)
    network.eval().requires_grad_(False)
    device = next(network.parameters()).device

    def score(volumes: Tensor) -> Tensor:
        return task.score(network(volumes))

    maps, ends = [], []
    for scan_id in scan_ids:
        scan = read([scan_id]).to(device).float() * SLOPE
        base = flat(scan)
        voxels = integrated_gradients(score, scan, base, params.steps, size=size)
        maps.append(block_sums(voxels[0, 0].cpu().numpy(), grid))
        with torch.no_grad():
            ends.append([score(scan).item(), score(base).item()])
    write_arrays(
        path,
        key=made_of,
        compress=True,
        scan_id=np.array(scan_ids, str),
        maps=np.stack(maps),
        spacing=np.array(BLOCKS.spacing),
        answer=np.array([scan for scan, _ in ends]),
        flat=np.array([base for _, base in ends]),
    )
