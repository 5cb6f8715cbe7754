"""Each step of a view against another library, for both ways of making views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage, stats

from neurofoundry.nn.augment import Draws, batched, cpu
from neurofoundry.nn.augment.params import AugmentParams
from tests.nn.augment.conftest import (
    GEOMETRY,
    PAPER,
    SHAPE,
    STILL,
    draw,
    heads,
    in_voxels,
    numpy_standardize,
)

STRENGTHS = {"gamma": 2.0, "remap": 0.3, "bias": 0.3, "blur": 1.0, "coarse": 2.0, "noise": 0.3}

Apply = Callable[[torch.Tensor, Draws], torch.Tensor]


@pytest.fixture(params=[cpu, batched], ids=["cpu", "batched"])
def apply(request: pytest.FixtureRequest) -> Apply:
    way: Apply = request.param.apply
    return way


def test_geometry_is_that_of_scipy(apply: Apply) -> None:
    volumes = heads(6)
    draws = draw(GEOMETRY, *"abcdef", view=1)
    views = apply(volumes, draws).numpy()
    for volume, view, affine in zip(volumes.numpy(), views, draws.affine, strict=True):
        matrix, offset = in_voxels(affine)
        brain, share = (
            ndimage.affine_transform(
                image.astype(float), matrix, offset, order=1, mode="grid-constant"
            )
            for image in (volume[0], volume[0] != 0)
        )
        sure = abs(share - 0.5) > 1e-4
        mask = share >= 0.5
        np.testing.assert_array_equal((view[0] != 0)[sure], mask[sure])
        expected = numpy_standardize(brain / np.maximum(share, 0.5), mask)
        np.testing.assert_allclose(view[0][sure], expected[sure], atol=2e-3)


def resampled_by_cpu(volume: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    seen = cpu.resample(volume, affine)
    assert seen is not None
    view = torch.zeros_like(volume)
    z, y, x = (slice(low, low + n) for low, n in zip(seen.low, seen.shape, strict=True))
    view[z, y, x] = seen.dense()[..., : view[z, y, x].shape[2]]
    return view


def resampled_in_a_batch(volume: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    return batched.resample(volume[None, None], affine[None])[0][0, 0]


@pytest.mark.parametrize("resample", [resampled_by_cpu, resampled_in_a_batch])
@pytest.mark.parametrize("params", [AugmentParams(crop=(0.7, 0.7)), PAPER])
def test_geometry_is_that_of_scipy_at_full_size_too(
    resample: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], params: AugmentParams
) -> None:
    shape = (150, 192, 192)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    mask = (z / 0.8) ** 2 + (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1
    texture = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    volume = np.where(mask, texture, 0)
    affine = draw(params, "c", shape=shape).affine[0]
    view = resample(torch.tensor(volume), affine).numpy()
    matrix, offset = in_voxels(affine, shape)
    some = np.random.default_rng(4).choice(np.argwhere(view), 20_000)
    at = matrix @ some.T + offset[:, None]
    value, share = (
        ndimage.map_coordinates(image, at, float, order=1, mode="grid-constant")
        for image in (volume, mask.astype(np.float32))
    )
    errors = view[tuple(some.T)] - value / share
    # White noise between voxels is as steep as it gets; rows are exact to 0.002 voxels.
    assert abs(errors).max() < 0.02
    assert np.sqrt(np.mean(errors**2)) < 1e-3


def test_a_still_view_is_the_volume(apply: Apply) -> None:
    volumes = heads()
    views = apply(volumes, draw(STILL, "a", "b"))
    torch.testing.assert_close(views, volumes, atol=1e-5, rtol=0)


def test_a_brain_up_to_every_face_of_an_odd_box_is_whole(apply: Apply) -> None:
    shape = (7, 9, 11)
    full = np.random.default_rng(2).uniform(0.5, 2, shape)
    volumes = torch.tensor(numpy_standardize(full, full > 0), dtype=torch.float32)[None, None]
    draws = draw(STILL, "a", shape=shape)
    torch.testing.assert_close(apply(volumes, draws), volumes, atol=1e-5, rtol=0)


def test_a_flip_exchanges_left_and_right_and_nothing_else(apply: Apply) -> None:
    volumes = heads()
    views = apply(volumes, draw(STILL.model_copy(update={"flip": 1.0}), "a", "b"))
    torch.testing.assert_close(views, volumes.flip(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("negative", [False, True])
def test_gamma_is_a_power_of_the_intensity_or_of_its_negative(apply: Apply, negative: bool) -> None:
    volumes = heads(1)
    draws = replace(draw(STILL, "a"), gamma=torch.tensor([1.7]), negative=torch.tensor([negative]))
    z = volumes[0, 0].double().numpy()
    x = np.clip(z / 10 + 0.5, 0, 1)
    expected = numpy_standardize(1 - (1 - x) ** 1.7 if negative else x**1.7, z != 0)
    view = apply(volumes, draws)[0, 0].numpy()
    np.testing.assert_allclose(view, expected, atol=3e-4)  # volumes are stored in steps of 1e-3


def test_the_bias_field_is_a_sum_of_cosines(apply: Apply) -> None:
    volumes = heads(1)
    coefficients = np.random.default_rng(6).standard_normal((1, 3, 3, 3))
    draws = replace(draw(STILL, "a"), bias=0.1 * torch.tensor(coefficients, dtype=torch.float32))
    spectrum = np.zeros(SHAPE)
    spectrum[:3, :3, :3] = draws.bias[0].numpy()
    for axis, n in enumerate(SHAPE):
        scale = np.full(n, float(n))
        scale[0] *= 2  # scipy's inverse DCT-II halves the constant
        spectrum *= np.expand_dims(scale, [other for other in range(3) if other != axis])
    field = np.exp(fft.idctn(spectrum, type=2))
    z = volumes[0, 0].double().numpy()
    expected = numpy_standardize(np.clip(z / 10 + 0.5, 0, 1) * field, z != 0)
    view = apply(volumes, draws)[0, 0].numpy()
    np.testing.assert_allclose(view, expected, atol=1e-4)


def test_blur_is_the_gaussian_filter_of_scipy(apply: Apply) -> None:
    volumes = heads(2)
    widths = np.array([[0.4, 0.9, 1.6], [1.2, 0.0, 0.6]])
    draws = replace(draw(STILL, "a", "b"), blur=torch.tensor(widths, dtype=torch.float32))
    views = apply(volumes, draws).numpy()
    for volume, view, sigma in zip(volumes.double().numpy(), views, widths, strict=True):
        z = volume[0]
        blurred = ndimage.gaussian_filter(z, sigma, mode="constant", truncate=12)
        expected = numpy_standardize(blurred, z != 0)
        np.testing.assert_allclose(view[0], expected, atol=1e-4)


def test_remapping_is_the_interpolation_of_numpy(apply: Apply) -> None:
    volumes = heads(2)
    draws = draw(STILL.model_copy(update={"remap": 0.8}), "a", "b")
    views = apply(volumes, draws).numpy()
    for volume, view, curve in zip(volumes, views, draws.remap.numpy(), strict=True):
        z = volume[0].double().numpy()
        x = np.clip(z / 10 + 0.5, 0, 1)
        expected = np.interp(x, np.linspace(0, 1, len(curve)), curve)
        np.testing.assert_allclose(view[0], numpy_standardize(expected, z != 0), atol=3e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_thickened_as_pillow_resizes(apply: Apply, axis: int) -> None:
    volumes = heads(1)
    left = torch.tensor([SHAPE])
    left[0, axis] = 9
    view = apply(volumes, replace(draw(STILL, "a"), coarse=left))[0, 0].numpy()
    z = volumes[0, 0].numpy()
    n = SHAPE[axis]
    lines = np.ascontiguousarray(np.moveaxis(z, axis, -1).reshape(-1, n))
    few = np.array(Image.fromarray(lines).resize((9, len(lines)), Image.Resampling.BILINEAR))
    at = (np.arange(n) + 0.5) * 9 / n - 0.5
    back = np.array([np.interp(at, np.arange(9), line) for line in few])
    moved = np.moveaxis(z, axis, -1)
    thick = np.moveaxis(back.reshape(moved.shape), -1, axis)
    np.testing.assert_allclose(view, numpy_standardize(thick, z != 0), atol=2e-4)


def test_noise_is_rician_and_as_strong_as_asked(apply: Apply) -> None:
    """A volume of two values, whose standard deviation is 1."""
    shape = (40, 40, 40)
    volume = torch.full(shape, -1.0)
    volume[:, :, 20:] = 1.0
    draws = draw(STILL, "a", shape=shape)
    noisy = []
    for number in (5, 6):
        one = replace(draws, noise=torch.tensor([0.6]), noise_seed=torch.tensor([number]))
        noisy.append(apply(volume[None, None], one)[0, 0].numpy())
    assert not np.allclose(*noisy, atol=0.1)
    parts = [noisy[0][:, :, :20].ravel(), noisy[0][:, :, 20:].ravel()]
    # As intensities they are 0.4 and 0.6, and the noise 0.06; views are standardized.
    distributions = [stats.rice(level / 0.06, scale=0.06) for level in (0.4, 0.6)]
    mean = np.mean([each.mean() for each in distributions])
    spread = np.sqrt(np.mean([each.moment(2) for each in distributions]) - mean**2)
    for part, law in zip(parts, distributions, strict=True):
        assert stats.kstest(part * spread + mean, law.cdf).pvalue > 0.01


def noisy_by_cpu(level: float) -> torch.Tensor:
    values = torch.full((3000, cpu.LINE), level)
    seen = cpu.Seen((0, 0, 0), (1, 3000, cpu.LINE), torch.arange(3000), values, values[:0])
    cpu.add_noise(seen, 0.06, seed=5)
    return values


def noisy_in_a_batch(level: float) -> torch.Tensor:
    values = torch.full((1, 1, 1, 3000, 8), level)
    return batched.add_noise(values, torch.tensor(0.06), torch.tensor([5]))


@pytest.mark.parametrize("noisy", [noisy_by_cpu, noisy_in_a_batch])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_noise_of_what_is_dark_is_rician_too(
    noisy: Callable[[float], torch.Tensor], level: float
) -> None:
    values = noisy(level).flatten().numpy()
    distribution = stats.rice(level / 0.06, scale=0.06)
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("step", STRENGTHS)
def test_standardization_undoes_no_step(apply: Apply, step: str) -> None:
    volumes = heads(8)
    draws = draw(STILL.model_copy(update={step: STRENGTHS[step]}), *"abcdefgh")
    change = (apply(volumes, draws) - volumes).square().sum((1, 2, 3, 4)).sqrt()
    change /= volumes.square().sum((1, 2, 3, 4)).sqrt()
    assert change.mean() > 0.05


def test_views_are_standardized_and_their_background_is_zero(apply: Apply) -> None:
    views = apply(heads(4), draw(AugmentParams(), *"abcd"))
    assert views.shape == (4, 1, *SHAPE)
    for view in views:
        inside = view[view != 0]
        assert 0.1 < len(inside) / view.numel() < 0.9
        assert abs(inside.mean()) < 1e-4
        assert abs(inside.std() - 1) < 1e-3


def test_the_batch_does_not_change_a_scans_view(apply: Apply) -> None:
    volumes = heads(3)
    together = apply(volumes, draw(AugmentParams(), *"abc", view=1))
    alone = apply(volumes[2:], draw(AugmentParams(), "c", view=1))
    torch.testing.assert_close(alone, together[2:], atol=1e-4, rtol=0)


def test_nothing_of_the_global_random_state_is_used(apply: Apply) -> None:
    volumes, draws = heads(), draw(AugmentParams(), "a", "b")
    torch.manual_seed(1)
    first = apply(volumes, draws)
    state = torch.get_rng_state()
    assert torch.equal(apply(volumes, draws), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_that_misses_the_brain_is_zero(apply: Apply) -> None:
    volumes = torch.zeros(1, 1, *SHAPE)
    volumes[..., :2] = 1.0  # brain at the left face alone
    away = torch.tensor([[[0.2, 0, 0, 0.8], [0, 0.2, 0, 0], [0, 0, 0.2, 0]]])
    assert not apply(volumes, replace(draw(STILL, "a"), affine=away)).any()
