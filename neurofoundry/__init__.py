"""A foundation model of 3D brain MRI, from raw scans to an honest evaluation.

The pipeline is a command line: ``neurofoundry --help``. From Python:

>>> from neurofoundry import load_encoder, embed, AugmentParams, draw, apply, nt_xent
>>> encoder = load_encoder("encoder/simclr")        # frozen: volumes in, features out
>>> network = encoder.encoder                       # the torch.nn.Module; encoder.plan feeds it
>>> table = embed(["raw/sub-01_T1w.nii.gz"], weights="encoder/simclr")      # raw scans, a row each
>>> draws = draw(AugmentParams(), seed=0, epoch=0, scans=["a"], view=0, shape=zscores.shape[2:])
>>> view = apply(zscores, draws)                    # zscores: (1, 1, z, y, x), background 0
>>> loss = nt_xent(views, persons, temperature=0.2)     # views: (2, batch, dimensions)

Read on with ``help(neurofoundry.load_encoder)`` and so on, and in docs/weights.md.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "AugmentParams": ("neurofoundry.nn.augment.params", "AugmentParams"),
    "apply": ("neurofoundry.nn.augment", "apply"),
    "draw": ("neurofoundry.nn.augment", "draw"),
    "embed": ("neurofoundry.inference.embeddings", "features_of"),
    "load_encoder": ("neurofoundry.weights.features", "load_encoder"),
    "nt_xent": ("neurofoundry.pretrain.ntxent", "nt_xent"),
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is used: only who uses it waits for that."""
    if name not in _PLACES:
        raise AttributeError(f"module 'neurofoundry' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """List what can be used from Python."""
    return sorted([*globals(), *_PLACES])
