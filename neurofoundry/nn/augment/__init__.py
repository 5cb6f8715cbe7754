"""Random views of a volume: parameters are drawn first, then applied to a whole batch.

torch is loaded with the first use of what is here, as parameters are checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from neurofoundry.nn.augment.draws import Draws, draw, magnifications

__all__ = ["Draws", "apply", "draw", "magnifications"]


def apply(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return a random view of each z-scored volume: one resampling, then what scanners do.

    In this order: crop, flip and rotation; blur and slice thickness; gamma and a curve of contrast;
    bias field; noise. ``volumes`` and views are (batch, channels, z, y, x) with background 0; in
    the brain of a view the mean is 0 and the standard deviation 1. A crop that misses the brain
    gives zeros.

    Channels are contrasts of one scan: they are seen from the same place and change alike, but for
    noise, which each has of its own. ``draws`` may be of several views of all volumes, one batch
    after the other; so are the views.
    """
    import torch

    from neurofoundry.nn.augment import batched, cpu

    if volumes.shape[1] > 1:
        each = enumerate(volumes.split(1, dim=1))
        return torch.cat([apply(one, draws.of_channel(number)) for number, one in each], 1)
    if volumes.device.type == "cpu":
        return cpu.apply(volumes, draws)
    return batched.apply(volumes, draws)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in ("Draws", "draw", "magnifications"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from neurofoundry.nn.augment import draws

        return getattr(draws, name)
