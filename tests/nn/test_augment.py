from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy import fft, ndimage, stats

from neurofoundry.nn import augment, seeds
from neurofoundry.nn.augment import Draws, cpu
from neurofoundry.nn.augment.params import AugmentParams

SHAPE = (20, 28, 24)  # z, y, x: no two alike, so that mixed-up axes show
PLAIN = {"gamma": 1.0, "remap": 0.0, "bias": 0.0, "blur": 0.0, "coarse": 1.0, "noise": 0.0}
GEOMETRY = AugmentParams.model_validate(PLAIN)
STILL = AugmentParams.model_validate(
    {**PLAIN, "crop": (1, 1), "stretch": 1, "flip": 0, "rotation": 0}
)
STRENGTHS = {"gamma": 2.0, "remap": 0.3, "bias": 0.3, "blur": 1.0, "coarse": 2.0, "noise": 0.3}
PAPER = AugmentParams(preset="paper")


def heads(batch: int = 2) -> torch.Tensor:
    """Ellipsoids of smooth texture, z-scored, background 0."""
    random = np.random.default_rng(8)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = (z / 0.8) ** 2 + (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1
    volumes = []
    for _ in range(batch):
        texture = ndimage.gaussian_filter(random.standard_normal(SHAPE), 1.0)
        volumes.append(numpy_standardise(texture, mask))
    return torch.tensor(np.array(volumes), dtype=torch.float32)[:, None]


def numpy_standardise(volume: NDArray, mask: NDArray) -> NDArray:
    inside = volume[mask]
    return np.where(mask, (volume - inside.mean()) / inside.std(), 0)


def draw(params: AugmentParams, *scans: str, view: int = 0, epoch: int = 0, seed: int = 1) -> Draws:
    return augment.draw(params, seed=seed, epoch=epoch, scans=scans, view=view, shape=SHAPE)


def rows(draws: Draws) -> list[bytes]:
    """Each sample's parameters as bytes."""
    columns = [getattr(draws, field.name).numpy() for field in fields(draws)]
    return [b"".join(column[i].tobytes() for column in columns) for i in range(len(columns[0]))]


def resampled(volume: torch.Tensor, affine: torch.Tensor) -> tuple[NDArray, NDArray, NDArray]:
    """A box of the view: where there is brain, its values; and the first voxel of the box."""
    seen = cpu._resample(volume, affine)
    assert seen is not None
    values = seen.dense().numpy()
    return values != 0, values, np.array(seen.low)


def in_voxels(affine: torch.Tensor, shape: tuple[int, int, int] = SHAPE) -> tuple[NDArray, NDArray]:
    """Matrix and offset from a view's to the volume's voxel indices, in the order z y x."""
    size = np.array(shape[::-1])
    matrix, shift = affine[:, :3].double().numpy(), affine[:, 3].double().numpy()
    linear = size[:, None] * matrix / size
    offset = (matrix @ (1 / size - 1) + shift + 1) * size / 2 - 0.5
    return linear[::-1, ::-1], offset[::-1]


class TestDraw:
    def test_the_same_key_draws_the_same_view(self) -> None:
        assert rows(draw(AugmentParams(), "a", "b")) == rows(draw(AugmentParams(), "a", "b"))

    @pytest.mark.parametrize("params", [AugmentParams(), PAPER], ids=["robust", "paper"])
    def test_no_two_views_are_alike(self, params: AugmentParams) -> None:
        scans = [f"scan-{number}" for number in range(50)]
        drawn = [
            row
            for seed in (1, 2)
            for epoch in range(3)
            for view in range(2)
            for row in rows(draw(params, *scans, view=view, epoch=epoch, seed=seed))
        ]
        assert len(set(drawn)) == len(drawn) == 600

    def test_no_parameter_is_shared_between_views(self) -> None:
        views = [draw(AugmentParams(), *map(str, range(40)), view=view) for view in range(2)]
        for field in fields(Draws):
            values = torch.cat([getattr(view, field.name) for view in views])
            few = field.name in ("negative", "coarse")
            assert few or len(values.unique(dim=0)) == 80

    def test_the_batch_does_not_change_a_scans_view(self) -> None:
        together = rows(draw(AugmentParams(), "a", "b", "c", view=1))
        assert rows(draw(AugmentParams(), "c", "a", view=1)) == [together[2], together[0]]

    def test_the_random_numbers_are_those_of_every_machine(self) -> None:
        assert seeds.generator(1, "order", 2).integers(1000, size=4).tolist() == [
            4,
            834,
            495,
            854,
        ]

    def test_a_view_is_a_rigid_turn_of_a_bounded_nearly_isotropic_crop(self) -> None:
        params = AugmentParams(crop=(0.5, 0.9), stretch=1.2)
        flipped = 0
        for affine in draw(params, *map(str, range(200))).affine:
            linear, _ = in_voxels(affine)
            gram = linear.T @ linear
            edges = np.sqrt(np.diag(gram))
            np.testing.assert_allclose(gram, np.diag(edges**2), atol=1e-6)
            assert 0.5 - 1e-6 <= edges.min() <= edges.max() <= 0.9 + 1e-6
            assert edges.max() / edges.min() <= 1.2 + 1e-6
            flipped += np.linalg.det(linear) < 0
        assert 70 < flipped < 130

    @pytest.mark.parametrize(
        "params",
        [
            AugmentParams(rotation=0, min_overlap=0.8),
            AugmentParams(rotation=0, crop=(0.3, 0.9), stretch=1.4, min_overlap=0.5),
        ],
    )
    def test_two_views_share_what_was_asked(self, params: AugmentParams) -> None:
        scans = [str(number) for number in range(200)]
        views = [draw(params, *scans, view=view).affine.double() for view in range(2)]
        axis = (torch.arange(30, dtype=torch.float64) + 0.5) / 15 - 1
        points = torch.cartesian_prod(axis, axis, axis)
        shares = []
        for affines in zip(*views, strict=True):
            seen = [
                (torch.linalg.solve(affine[:, :3], (points - affine[:, 3]).T).abs() <= 1).all(0)
                for affine in affines
            ]
            shares.append(((seen[0] & seen[1]).sum() / min(seen[0].sum(), seen[1].sum())).item())
        assert min(shares) > params.min_overlap - 0.05  # as finely as a lattice of 30³ points sees
        assert min(shares) < params.min_overlap + 0.1
        assert max(shares) > 0.9

    def test_two_turned_views_share_most_of_the_brain(self) -> None:
        params = AugmentParams()
        scans = [str(number) for number in range(300)]
        views = [draw(params, *scans, view=view).affine.double() for view in range(2)]
        axis = (torch.arange(24, dtype=torch.float64) + 0.5) / 12 - 1
        points = torch.cartesian_prod(axis, axis, axis)
        # An ellipsoid as wide, long and high as the template's brain in its box.
        brain = points[((points / torch.tensor([0.73, 0.92, 0.93])) ** 2).sum(dim=1) < 1]
        for affines in zip(*views, strict=True):
            seen = [
                (torch.linalg.solve(affine[:, :3], (brain - affine[:, 3]).T).abs() <= 1).all(0)
                for affine in affines
            ]
            shared = (seen[0] & seen[1]).sum() / min(seen[0].sum(), seen[1].sum())
            assert shared > params.min_overlap + 0.1

    def test_the_published_law_is_that_of_its_own_draws(self) -> None:
        """Against 200,000 draws of the authors' MONAI transforms: fractions of them."""
        shape = (150, 192, 192)
        scans = [str(number) for number in range(1500)]
        views = [
            augment.draw(PAPER, seed=1, epoch=0, scans=scans, view=view, shape=shape)
            for view in range(2)
        ]
        extent = np.array(shape[::-1])[:, None]
        edges, centres = [], []
        for draws in views:
            affine = draws.affine.double().numpy()
            # Columns are turned edges, of lengths that count in voxels.
            lengths = np.linalg.norm(affine[:, :, :3] * extent, axis=1)
            edges.append(lengths / extent[:, 0])
            centres.append((affine[:, :, 3] + 1) / 2)
        both = np.concatenate(edges)
        volume, ratio = both.prod(1), both.max(1) / both.min(1)
        assert abs(volume.mean() - 0.22) < 0.01
        assert abs(np.median(volume) - 0.177) < 0.015
        assert abs((ratio > 2).mean() - 0.52) < 0.03
        assert abs((ratio > 3).mean() - 0.19) < 0.03
        apart = (abs(centres[0] - centres[1]) >= (edges[0] + edges[1]) / 2).any(1)
        assert abs(apart.mean() - 0.11) < 0.03
        gammas = torch.cat([draws.gamma for draws in views])
        assert abs((gammas == 1).double().mean() - 0.2) < 0.03
        assert 0.5 <= gammas.min() < 0.52
        assert 1.48 < gammas.max() <= 1.5
        linear = torch.cat([draws.affine for draws in views])[:, :, :3].numpy() * extent
        off_axis = [(abs(turn) > 1e-4).sum() - 3 for turn in linear]
        assert set(off_axis) == {0, 2}  # about one axis, or not at all
        assert abs(np.mean(np.array(off_axis) == 2) - 0.5) < 0.04
        assert abs((np.linalg.det(linear) < 0).mean() - 0.5) < 0.04

    @pytest.mark.parametrize(
        "values",
        [
            {"crop": [0.9, 0.5]},
            {"crop": [0.0, 1.0]},
            {"crop": [0.5, 1.1]},
            {"min_overlap": 1.0},
            {"min_overlap": 0.9, "stretch": 1.5},
            {"gamma": 0.5},
            {"shift": 0.1},
            {"coarse": 0.5},
            {"preset": "paper", "rotation": 20},
        ],
    )
    def test_impossible_parameters_are_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            AugmentParams.model_validate(values)


class TestApply:
    def test_geometry_is_that_of_scipy(self) -> None:
        volumes = heads(6)
        draws = draw(GEOMETRY, *"abcdef", view=1)
        views = augment.apply(volumes, draws).numpy()
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
            expected = numpy_standardise(brain / np.maximum(share, 0.5), mask)
            np.testing.assert_allclose(view[0][sure], expected[sure], atol=2e-3)

    @pytest.mark.parametrize("params", [AugmentParams(crop=(0.7, 0.7)), PAPER])
    def test_geometry_is_that_of_scipy_at_full_size_too(self, params: AugmentParams) -> None:
        shape = (150, 192, 192)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
        mask = (z / 0.8) ** 2 + (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1
        texture = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        volume = np.where(mask, texture, 0)
        draws = augment.draw(params, seed=1, epoch=0, scans=["c"], view=0, shape=shape)
        brain, values, corner = resampled(torch.tensor(volume), draws.affine[0])
        matrix, offset = in_voxels(draws.affine[0], shape)
        some = np.random.default_rng(4).choice(np.argwhere(brain), 20_000) + corner
        at = matrix @ some.T + offset[:, None]
        value, share = (
            ndimage.map_coordinates(image, at, float, order=1, mode="grid-constant")
            for image in (volume, mask.astype(np.float32))
        )
        found = values[tuple((some - corner).T)]
        # White noise between voxels is as steep as it gets; rows are exact to 0.002 voxels.
        np.testing.assert_allclose(found, value / share, atol=0.02)
        assert np.sqrt(np.mean((found - value / share) ** 2)) < 1e-3

    def test_a_still_view_is_the_volume(self) -> None:
        volumes = heads()
        views = augment.apply(volumes, draw(STILL, "a", "b"))
        torch.testing.assert_close(views, volumes, atol=1e-5, rtol=0)

    def test_a_brain_up_to_every_face_of_an_odd_box_is_whole(self) -> None:
        shape = (7, 9, 11)
        full = np.random.default_rng(2).uniform(0.5, 2, shape)
        volumes = torch.tensor(numpy_standardise(full, full > 0), dtype=torch.float32)[None, None]
        draws = augment.draw(STILL, seed=1, epoch=0, scans=["a"], view=0, shape=shape)
        torch.testing.assert_close(augment.apply(volumes, draws), volumes, atol=1e-5, rtol=0)

    def test_a_flip_exchanges_left_and_right_and_nothing_else(self) -> None:
        volumes = heads()
        views = augment.apply(volumes, draw(STILL.model_copy(update={"flip": 1.0}), "a", "b"))
        torch.testing.assert_close(views, volumes.flip(4), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("negative", [False, True])
    def test_gamma_is_a_power_of_the_intensity_or_of_its_negative(self, negative: bool) -> None:
        volumes = heads(1)
        draws = replace(
            draw(STILL, "a"), gamma=torch.tensor([1.7]), negative=torch.tensor([negative])
        )
        z = volumes[0, 0].double().numpy()
        x = np.clip(z / 10 + 0.5, 0, 1)
        expected = numpy_standardise(1 - (1 - x) ** 1.7 if negative else x**1.7, z != 0)
        found = augment.apply(volumes, draws)[0, 0].numpy()
        np.testing.assert_allclose(
            found, expected, atol=3e-4
        )  # volumes are stored in steps of 1e-3

    def test_the_bias_field_is_a_sum_of_cosines(self) -> None:
        volumes = heads(1)
        draws = replace(draw(STILL, "a"), bias=torch.randn(1, 3, 3, 3) * 0.1)
        spectrum = np.zeros(SHAPE)
        spectrum[:3, :3, :3] = draws.bias[0].numpy()
        for axis, n in enumerate(SHAPE):
            scale = np.full(n, float(n))
            scale[0] *= 2  # scipy's inverse DCT-II halves the constant
            spectrum *= np.expand_dims(scale, [other for other in range(3) if other != axis])
        field = np.exp(fft.idctn(spectrum, type=2))
        z = volumes[0, 0].double().numpy()
        expected = numpy_standardise(np.clip(z / 10 + 0.5, 0, 1) * field, z != 0)
        found = augment.apply(volumes, draws)[0, 0].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_the_bias_field_is_as_strong_as_asked(self) -> None:
        params = STILL.model_copy(update={"bias": 0.3})
        drawn = draw(params, *map(str, range(200))).bias
        fields = [cpu._cosines(each, SHAPE, (0, 0, 0), SHAPE) for each in drawn]
        strengths = torch.stack([field.std() for field in fields])
        assert strengths.max() < 0.302
        assert abs(strengths.mean() - 0.15) < 0.02

    def test_blur_is_the_gaussian_filter_of_scipy(self) -> None:
        volumes = heads(2)
        widths = np.array([[0.4, 0.9, 1.6], [1.2, 0.0, 0.6]])
        draws = replace(draw(STILL, "a", "b"), blur=torch.tensor(widths, dtype=torch.float32))
        views = augment.apply(volumes, draws).numpy()
        for volume, view, sigma in zip(volumes.double().numpy(), views, widths, strict=True):
            z = volume[0]
            blurred = ndimage.gaussian_filter(z, sigma, mode="constant", truncate=12)
            expected = numpy_standardise(blurred, z != 0)
            np.testing.assert_allclose(view[0], expected, atol=1e-4)

    def test_remapping_is_the_interpolation_of_numpy(self) -> None:
        volumes = heads(2)
        draws = draw(STILL.model_copy(update={"remap": 0.8}), "a", "b")
        views = augment.apply(volumes, draws).numpy()
        for volume, view, curve in zip(volumes, views, draws.remap.numpy(), strict=True):
            z = volume[0].double().numpy()
            x = np.clip(z / 10 + 0.5, 0, 1)
            expected = np.interp(x, np.linspace(0, 1, len(curve)), curve)
            np.testing.assert_allclose(view[0], numpy_standardise(expected, z != 0), atol=3e-4)

    def test_curves_of_contrast_rise_from_0_to_1(self) -> None:
        curves = draw(AugmentParams(remap=1), *map(str, range(100))).remap
        assert torch.equal(curves[:, 0], torch.zeros(100))
        assert torch.equal(curves[:, -1], torch.ones(100))
        assert (curves.diff() > 0).all()
        assert torch.allclose(draw(STILL, "a").remap[0], torch.linspace(0, 1, draw.KNOTS))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slices_are_thickened_as_pillow_resizes(self, axis: int) -> None:
        volumes = heads(1)
        left = torch.tensor([SHAPE])
        left[0, axis] = 9
        found = augment.apply(volumes, replace(draw(STILL, "a"), coarse=left))[0, 0].numpy()
        z = volumes[0, 0].numpy()
        n = SHAPE[axis]
        lines = np.ascontiguousarray(np.moveaxis(z, axis, -1).reshape(-1, n))
        few = np.array(Image.fromarray(lines).resize((9, len(lines)), Image.Resampling.BILINEAR))
        at = (np.arange(n) + 0.5) * 9 / n - 0.5
        back = np.array([np.interp(at, np.arange(9), line) for line in few])
        moved = np.moveaxis(z, axis, -1)
        thick = np.moveaxis(back.reshape(moved.shape), -1, axis)
        np.testing.assert_allclose(found, numpy_standardise(thick, z != 0), atol=2e-4)

    def test_one_axis_has_slices_no_thicker_than_asked(self) -> None:
        left = draw(AugmentParams(coarse=2), *map(str, range(200))).coarse
        thickness = torch.tensor(SHAPE) / left
        assert ((thickness > 1).sum(1) <= 1).all()
        assert thickness.max() <= 2
        assert (thickness.amax(0) > 1.8).all()

    def test_noise_is_rician_and_as_strong_as_asked(self) -> None:
        """A volume of two values, whose standard deviation is 1."""
        shape = (40, 40, 40)
        volume = torch.full(shape, -1.0)
        volume[:, :, 20:] = 1.0
        draws = augment.draw(STILL, seed=1, epoch=0, scans=["a"], view=0, shape=shape)
        noisy = []
        for number in (5, 6):
            one = replace(draws, noise=torch.tensor([0.6]), noise_seed=torch.tensor([number]))
            noisy.append(augment.apply(volume[None, None], one)[0, 0].numpy())
        assert not np.allclose(*noisy, atol=0.1)
        parts = [noisy[0][:, :, :20].ravel(), noisy[0][:, :, 20:].ravel()]
        # As intensities they are 0.4 and 0.6, and the noise 0.06; views are standardised.
        laws = [stats.rice(level / 0.06, scale=0.06) for level in (0.4, 0.6)]
        mean = np.mean([law.mean() for law in laws])
        spread = np.sqrt(np.mean([law.moment(2) for law in laws]) - mean**2)
        for part, law in zip(parts, laws, strict=True):
            assert stats.kstest(part * spread + mean, law.cdf).pvalue > 0.01

    @pytest.mark.parametrize("level", [0.0, 0.1])
    def test_noise_of_what_is_dark_is_rician_too(self, level: float) -> None:
        dark = torch.full((3000, cpu.LINE), level)
        seen = cpu.Seen((0, 0, 0), (1, 3000, cpu.LINE), torch.arange(3000), dark, dark[:0])
        cpu._add_noise(seen, 0.06, seed=5)
        law = stats.rice(level / 0.06, scale=0.06)
        assert stats.kstest(dark.flatten().numpy(), law.cdf).pvalue > 0.01
        neighbours = np.corrcoef(dark.flatten()[:-1], dark.flatten()[1:])[0, 1]
        assert abs(neighbours) < 0.03

    @pytest.mark.parametrize("step", STRENGTHS)
    def test_standardisation_undoes_no_step(self, step: str) -> None:
        volumes = heads(8)
        draws = draw(STILL.model_copy(update={step: STRENGTHS[step]}), *"abcdefgh")
        change = (augment.apply(volumes, draws) - volumes).square().sum((1, 2, 3, 4)).sqrt()
        change /= volumes.square().sum((1, 2, 3, 4)).sqrt()
        assert change.mean() > 0.05

    def test_views_are_standardised_and_their_background_is_zero(self) -> None:
        views = augment.apply(heads(4), draw(AugmentParams(), *"abcd"))
        assert views.shape == (4, 1, *SHAPE)
        for view in views:
            inside = view[view != 0]
            assert 0.1 < len(inside) / view.numel() < 0.9
            assert abs(inside.mean()) < 1e-4
            assert abs(inside.std() - 1) < 1e-3

    def test_the_batch_does_not_change_a_scans_view(self) -> None:
        volumes = heads(3)
        together = augment.apply(volumes, draw(AugmentParams(), *"abc", view=1))
        alone = augment.apply(volumes[2:], draw(AugmentParams(), "c", view=1))
        torch.testing.assert_close(alone, together[2:], atol=1e-4, rtol=0)

    def test_the_number_of_threads_changes_no_bit(self) -> None:
        volumes, draws = heads(3), draw(AugmentParams(), *"abc", view=1)
        before = torch.get_num_threads()
        views = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            views.append(augment.apply(volumes, draws))
            assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        assert torch.equal(views[0], views[1])
        assert torch.equal(views[0], views[2])

    def test_nothing_of_the_global_random_state_is_used(self) -> None:
        volumes, draws = heads(), draw(AugmentParams(), "a", "b")
        torch.manual_seed(1)
        first = augment.apply(volumes, draws)
        state = torch.get_rng_state()
        assert torch.equal(augment.apply(volumes, draws), first)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_crop_that_misses_the_brain_is_zero(self) -> None:
        volumes = torch.zeros(1, 1, *SHAPE)
        volumes[..., :2] = 1.0  # brain at the left face alone
        away = torch.tensor([[[0.2, 0, 0, 0.8], [0, 0.2, 0, 0], [0, 0, 0.2, 0]]])
        assert not augment.apply(volumes, replace(draw(STILL, "a"), affine=away)).any()
