"""Scales on which the uncertainty of a metric is nearly that of a textbook quantity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scale:
    """A scale of a metric; intervals on it never leave the values that the metric can take."""

    to: Callable[[Any], Any]
    """Of one number, or of an array."""
    back: Callable[[Any], Any]
    slope: Callable[[float], float]
    """Derivative of ``to``."""
    share: bool = False
    """Whether the metric becomes a share, with the interval of a proportion. Otherwise an estimate
    is nearly normal there."""


LINEAR = Scale(lambda v: v, lambda u: u, lambda v: 1.0)
LOG = Scale(np.log, np.exp, lambda v: 1 / v)
LOG_REMAINDER = Scale(lambda v: -np.log1p(-v), lambda u: -np.expm1(-u), lambda v: 1 / (1 - v))
FISHER = Scale(np.arctanh, np.tanh, lambda v: 1 / (1 - v**2))
SHARE = Scale(lambda v: v, lambda u: u, lambda v: 1.0, share=True)
JACCARD = Scale(
    lambda f: f / (2 - f), lambda j: 2 * j / (1 + j), lambda f: 2 / (2 - f) ** 2, share=True
)
"""F1 as hits / (positives or called), which is a share of scans; F1 itself is not."""
