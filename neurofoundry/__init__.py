"""A foundation model of 3D brain MRI, from raw scans to an honest evaluation."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_encoder`, which needs torch: only who uses it waits for that."""
    if name == "load_encoder":
        return import_module("neurofoundry.weights.features").load_encoder
    raise AttributeError(f"module 'neurofoundry' has no attribute '{name}'")
