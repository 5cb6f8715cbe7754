"""Intensities that mean the same in every scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurofoundry.preprocess.resample import Mask


def zscore(values: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Mean 0 and standard deviation 1 within the mask; 0 outside."""
    inside = values[mask].astype(np.float64)
    scores = np.zeros(values.shape, np.float32)
    scores[mask] = (inside - inside.mean()) / inside.std()
    return scores
