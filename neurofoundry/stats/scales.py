"""Scales on which the estimates of metrics are nearly normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A scale on which an estimate is nearly normal: its interval is symmetric there, and never
    leaves the values that the metric can take."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]
    """Derivative of ``to``."""
    few_persons: bool = False
    """Whether resamples vary less than samples by a factor that matters, √((n − 1)/n)."""


LINEAR = Scale(lambda v: v, lambda u: u, lambda v: 1.0, few_persons=True)
LOGIT = Scale(
    lambda v: math.log(v / (1 - v)),
    lambda u: 0.5 + 0.5 * math.tanh(u / 2),
    lambda v: 1 / (v * (1 - v)),
)
LOG = Scale(math.log, math.exp, lambda v: 1 / v, few_persons=True)
LOG_REMAINDER = Scale(lambda v: -math.log(1 - v), lambda u: 1 - math.exp(-u), lambda v: 1 / (1 - v))
FISHER = Scale(math.atanh, math.tanh, lambda v: 1 / (1 - v**2), few_persons=True)
