"""Volumes of the standard grid as batches that a network reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from neurofoundry.volumes import Grid, open_volume


def read_batch(folder: Path, scan_ids: Sequence[str], grid: Grid) -> torch.Tensor:
    """Volumes as int16 steps of ``SLOPE``, shape (batch, 1, z, y, x). Raises DataError."""
    volumes = [open_volume(folder / f"{scan_id}.nii", grid) for scan_id in scan_ids]
    return torch.from_numpy(np.stack(volumes)).unsqueeze(1)
