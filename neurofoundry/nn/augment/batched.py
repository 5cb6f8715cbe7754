"""Random views of a whole batch at once, step by step as they are defined.

A GPU makes its views this way, and the faster way of a CPU (cpu.py) is tested against it.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from neurofoundry.nn.augment.draws import WINDOW, Draws

AT_ONCE = 16
"""Scans that are transformed together. They need the memory of a dozen copies of their volumes."""


def apply(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Return views as `augment.apply` does, on any device."""
    rows = torch.arange(len(draws.gamma), device=volumes.device) % len(volumes)
    parts = zip(torch.split(rows, AT_ONCE), draws.to(volumes.device).split(AT_ONCE), strict=True)
    return torch.cat([_transform(volumes[some], theirs) for some, theirs in parts])


def _transform(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    zscores, brain = resample(volumes, draws.affine)
    shown = inside(draws.shown, volumes.shape[2:])
    zscores, brain = zscores * shown, brain & shown
    zscores = soften(zscores, draws.blur, draws.coarse)
    intensities = (zscores / (2 * WINDOW) + 0.5).clamp(0, 1)
    intensities = bend(change_gamma(intensities, draws.gamma, draws.negative), draws.remap)
    intensities = intensities * bias_field(draws.bias, volumes.shape[2:]).exp()
    _, deviation = moments(intensities, brain)
    noisy = add_noise(intensities, _column(draws.noise) * deviation, draws.noise_seed)
    mean, deviation = moments(noisy, brain)
    return torch.where(brain, (noisy - mean) / deviation.clamp(min=1e-6), 0)


def resample(volumes: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolate volumes (batch, 1, z, y, x) where ``affine`` (batch, 3, 4) places each voxel.

    Returns the views and where they show brain: where at least half of what a voxel is
    interpolated from is brain. It then shows the mean of that part alone, so that the background
    does not bleed in.
    """
    brain = (volumes != 0).to(volumes.dtype)
    places = F.affine_grid(affine, list(volumes.shape), align_corners=False)
    both = F.grid_sample(torch.cat([volumes, brain], 1), places, align_corners=False)
    image, share = both[:, :1], both[:, 1:]
    return torch.where(share >= 0.5, image / share.clamp(min=0.5), 0), share >= 0.5


def inside(shown: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return where a view may show something, (batch, 1, z, y, x), from `Draws.shown`."""
    z, y, x = (
        (sample >= shown[:, axis, :1]) & (sample < shown[:, axis, 1:])
        for axis, n in enumerate(shape)
        for sample in [torch.arange(n, device=shown.device)]
    )
    return (z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :])[:, None]


def soften(zscores: torch.Tensor, blur: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Blur by ``blur`` voxels, then resize to ``coarse`` samples and back: (batch, 3), z, y, x."""
    for axis in range(3):
        n = zscores.shape[2 + axis]
        matrices = thicken(n, coarse[:, axis]) @ gaussian(n, blur[:, axis])
        lines = zscores.movedim(2 + axis, -1)
        zscores = (lines @ matrices.mT[:, None, None]).movedim(-1, 2 + axis)
    return zscores


def gaussian(n: int, deviation: torch.Tensor) -> torch.Tensor:
    """Matrices (batch, n, n) that blur ``n`` samples among zeros; ``deviation`` is (batch,)."""
    sample = torch.arange(n, device=deviation.device)
    deviation = deviation.clamp(min=1e-3)[:, None, None]
    weights = (-0.5 * ((sample[:, None] - sample) / deviation).square()).exp()
    kernel = (-0.5 * (torch.arange(1 - n, n, device=deviation.device) / deviation).square()).exp()
    return weights / kernel.sum(-1, keepdim=True)


def thicken(n: int, left: torch.Tensor) -> torch.Tensor:
    """Matrices (batch, n, n) that resize ``n`` samples to ``left`` (batch,) and back.

    Down with a triangle as wide as two thick samples, as Pillow resizes, and linearly back.
    """
    sample = torch.arange(n, device=left.device)
    thickness = (n / left)[:, None, None]
    centre = (sample[:, None] + 0.5) * thickness - 0.5
    down = (1 - (sample - centre).abs() / thickness).clamp(min=0)
    down = down / down.sum(-1, keepdim=True).clamp(min=1e-6)
    place = ((sample[:, None] + 0.5) / thickness - 0.5).clamp(min=0)
    place = place.minimum(left[:, None, None] - 1)
    return (1 - (sample - place).abs()).clamp(min=0) @ down


def change_gamma(
    intensities: torch.Tensor, gamma: torch.Tensor, negative: torch.Tensor
) -> torch.Tensor:
    """Raise intensities in 0…1 to ``gamma`` (batch,), or where ``negative`` their complements."""
    exponent = _column(gamma)
    of_negative = 1 - (1 - intensities) ** exponent
    return torch.where(_column(negative), of_negative, intensities**exponent)


def bend(intensities: torch.Tensor, curves: torch.Tensor) -> torch.Tensor:
    """Take intensities in 0…1 through curves (batch, knots) that are linear between their knots."""
    pieces = curves.shape[1] - 1
    place = intensities.flatten(1) * pieces
    piece = place.long().clamp(max=pieces - 1)
    low, high = curves.gather(1, piece), curves.gather(1, piece + 1)
    return torch.lerp(low, high, place - piece).view_as(intensities)


def bias_field(coefficients: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Sum cosines: logarithms of bias fields (batch, 1, z, y, x) from (batch, 3, 3, 3).

    It is the inverse DCT-II without its scaling.
    """
    frequency = torch.arange(3, device=coefficients.device)[:, None]
    z, y, x = (
        torch.cos(torch.pi / n * frequency * (torch.arange(n, device=coefficients.device) + 0.5))
        for n in shape
    )
    return torch.einsum("bijk,iz,jy,kx->bzyx", coefficients, z, y, x)[:, None]


def add_noise(
    intensities: torch.Tensor, deviation: torch.Tensor, seeds: torch.Tensor
) -> torch.Tensor:
    """Return magnitudes with complex Gaussian noise: Rician (Gudbjartsson and Patz 1995).

    The noise of a scan depends on its seed (batch,) alone, not on the rest of the batch.
    """
    device = intensities.device
    sources = (torch.Generator(device).manual_seed(seed) for seed in seeds.tolist())
    size = (2, *intensities.shape[1:])
    noise = torch.stack([torch.randn(size, generator=each, device=device) for each in sources], 1)
    real, imaginary = noise * deviation
    return torch.hypot(intensities + real, imaginary)


def moments(values: torch.Tensor, brain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation in the brain, each (batch, 1, 1, 1, 1)."""
    axes = (1, 2, 3, 4)
    count = brain.sum(axes, keepdim=True).clamp(min=1)
    mean = torch.where(brain, values, 0).sum(axes, keepdim=True) / count
    variance = torch.where(brain, (values - mean).square(), 0).sum(axes, keepdim=True) / count
    return mean, variance.sqrt()


def _column(values: torch.Tensor) -> torch.Tensor:
    """From (batch,) to (batch, 1, 1, 1, 1)."""
    return values[:, None, None, None, None]
