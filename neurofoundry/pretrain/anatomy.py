"""An auxiliary loss: each view tells the sizes of the anatomy that it shows. It needs no labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from neurofoundry.morphometry import SIZES
from neurofoundry.nn import augment
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.stats.metrics import Values

VOLUMES = [SIZES.index(name) for name in ("brain_ml", "ventricles_ml")]
EDGES = [SIZES.index(name) for name in ("width_mm", "length_mm", "height_mm")]
SIDES = [SIZES.index(name) for name in ("left_temporal", "right_temporal")]


class Anatomy(nn.Module):
    """A linear head on the features, and the sizes that it is to predict.

    A view that is zoomed shows a larger head: its targets are the sizes of the volume times the
    known zoom, with left and right exchanged where the view is mirrored. Shares stay.
    """

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, len(SIZES))
        self.register_buffer("centre", torch.zeros(len(SIZES)))
        self.register_buffer("spread", torch.ones(len(SIZES)))
        self._sizes: dict[str, Values] = {}
        self._targets = np.empty((0, 0, len(SIZES)))

    def learn_of(
        self, scans: Sequence[str], sizes: Values, params: AugmentParams, *, seed: int, views: int
    ) -> None:
        """Keep the ``sizes`` (scans, SIZES) of the unlabelled scans, and how their views vary."""
        self._sizes = dict(zip(scans, sizes, strict=True))
        shown = self.targets(scans, params, seed, 0, views=views).reshape(-1, len(SIZES))
        spread = shown.std(axis=0)
        self.centre.copy_(torch.from_numpy(shown.mean(axis=0)))
        self.spread.copy_(torch.from_numpy(np.where(spread > 1e-9, spread, 1)))

    def targets(self, scans: Sequence[str], params: AugmentParams, *key: int, views: int) -> Values:
        """Return the sizes of each view, (views, scans, SIZES); ``key`` is (seed, epoch)."""
        sizes = np.array([self._sizes[scan] for scan in scans])
        seed, epoch = key
        return np.stack(
            [
                magnified(
                    sizes,
                    augment.magnifications(params, seed=seed, epoch=epoch, scans=scans, view=view),
                )
                for view in range(views)
            ]
        )

    def expect(self, scans: Sequence[str], params: AugmentParams, *key: int, views: int) -> None:
        """Take note of whose features `error` gets next."""
        self._targets = self.targets(scans, params, *key, views=views)

    def error(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean smooth L1 error, in standard deviations, of features (views, scans, d)
        of the scans that were expected."""
        targets = torch.as_tensor(self._targets).to(self.centre)
        return F.smooth_l1_loss(self.head(features), (targets - self.centre) / self.spread)


def magnified(sizes: Values, zoom: Values) -> Values:
    """Return SIZES (scans, SIZES) of what is magnified by ``zoom`` (scans, 3), x y z; where that is
    negative along x, left and right are exchanged."""
    shown = sizes.copy()
    shown[:, VOLUMES] *= np.abs(zoom).prod(axis=1, keepdims=True)
    shown[:, EDGES] *= np.abs(zoom)
    mirrored = zoom[:, :1] < 0
    shown[:, SIDES] = np.where(mirrored, sizes[:, SIDES[::-1]], sizes[:, SIDES])
    return shown
