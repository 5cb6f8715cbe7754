from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.phantom import anatomy
from neurofoundry.phantom.anatomy import CSF, GLIOSIS, GREY, WHITE, sample_subject
from neurofoundry.phantom.atlas import Atlas, build_atlas
from neurofoundry.phantom.outside import SHELL_CHANNELS
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, VOLUMES, Head, head, head_on_grid


@pytest.fixture(scope="module")
def heads(atlas: Atlas) -> dict[str, Head]:
    """One head of each site."""
    subjects = [sample_subject(PhantomParams(seed=1), index) for index in range(4)]
    return {s.site: head(s, "1", SITES[s.site], atlas) for s in subjects}


@pytest.fixture(scope="module")
def stroke_heads(atlas: Atlas) -> list[Head]:
    params = PhantomParams(seed=5, lesion_load=0.0)
    subjects = [sample_subject(params, index) for index in range(16)]
    return [head(s, "1", SITES[s.site], atlas) for s in subjects if s.infarct]


def in_mni(scan: Head, mask: NDArray[np.bool_], pose: NDArray[np.float64]) -> NDArray[np.float64]:
    index = np.argwhere(mask)
    return nibabel.affines.apply_affine(pose @ scan.affine, index)


def overlap(scan: Head, pose: NDArray[np.float64], atlas: Atlas) -> float:
    """Dice of the posed brain, scaled to the template's volume, and the template's brain."""
    points = in_mni(scan, scan.brain, pose)
    voxel = abs(np.linalg.det(scan.affine[:3, :3]))
    hull = atlas.shell.values[..., SHELL_CHANNELS.index("hull")] < 0
    template = hull.sum() * atlas.shell.spacing**3
    factor = (template / (len(points) * voxel)) ** (1 / 3)
    centre = np.array(atlas.centre)
    points = centre + factor * (points - centre)
    inside = (atlas.shell.nearest(points.astype(np.float32), 0) < 0).sum() * voxel * factor**3
    return float(2 * inside / (template + len(points) * voxel * factor**3))


def turned(degrees: float, centre: tuple[float, ...]) -> NDArray[np.float64]:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    turn[:3, 3] = np.array(centre) - turn[:3, :3] @ centre
    return turn


@pytest.mark.parametrize("site", list(SITES))
class TestEverySite:
    def test_grid_has_the_declared_axes_and_spacing(
        self, site: str, heads: dict[str, Head]
    ) -> None:
        scan = heads[site]
        assert "".join(nibabel.aff2axcodes(scan.affine)) == SITES[site].axes
        spacing = nibabel.affines.voxel_sizes(
            nibabel.as_closest_canonical(nibabel.Nifti1Image(scan.labels, scan.affine)).affine
        )
        np.testing.assert_allclose(spacing, SITES[site].spacing)

    def test_pose_lays_the_brain_on_the_template(
        self, site: str, heads: dict[str, Head], atlas: Atlas
    ) -> None:
        scan = heads[site]
        np.testing.assert_allclose(scan.pose[:3, :3] @ scan.pose[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(scan.pose[:3, :3]) == pytest.approx(1)
        best = overlap(scan, scan.pose, atlas)
        assert best > 0.93
        for degrees in (-12, 12):
            assert overlap(scan, turned(degrees, atlas.centre) @ scan.pose, atlas) < best - 0.01

    def test_the_whole_brain_is_in_view(self, site: str, heads: dict[str, Head]) -> None:
        brain = heads[site].brain
        edge = np.ones_like(brain)
        edge[1:-1, 1:-1, 1:-1] = False
        assert (brain & edge).sum() < 0.01 * brain.sum()

    def test_background_is_uncorrelated_rician_noise(
        self, site: str, heads: dict[str, Head]
    ) -> None:
        scan = heads[site]
        air = ndimage.binary_erosion(scan.labels == anatomy.AIR, iterations=4)
        # The corner above and behind the head, far from airways.
        above = in_mni(scan, np.ones_like(air), scan.pose)[:, 2].reshape(air.shape) > 40
        values = scan.image[air & above]
        assert len(values) > 1000
        assert values.mean() / values.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)
        for axis in range(3):
            both = (air & above) & np.roll(air & above, 1, axis)
            neighbours = np.roll(scan.image, 1, axis)
            assert abs(np.corrcoef(scan.image[both], neighbours[both])[0, 1]) < 0.05

    def test_contrast_and_noise_are_as_declared(self, site: str, heads: dict[str, Head]) -> None:
        scan, declared = heads[site], SITES[site]
        flat = scan.image / scan.bias
        deep = ndimage.binary_erosion(scan.brain, iterations=3)
        level = {
            name: np.median(flat[deep & ndimage.binary_erosion(scan.labels == label)])
            for name, label in (("grey", GREY), ("white", WHITE))
        }
        ventricle = flat[ndimage.binary_erosion(scan.ventricle)]
        assert level["grey"] / level["white"] == pytest.approx(declared.contrast["grey"], abs=0.06)
        assert np.median(ventricle) / level["white"] == pytest.approx(
            declared.contrast["csf"], abs=0.09
        )
        assert 0.8 < level["white"] / declared.white_level < 1.2
        air = ndimage.binary_erosion(scan.labels == anatomy.AIR, iterations=4)
        sigma = np.sqrt((scan.image[air].astype(float) ** 2).mean() / 2)
        assert sigma / level["white"] == pytest.approx(declared.noise, rel=0.25)

    def test_shading_is_smooth_and_positive(self, site: str, heads: dict[str, Head]) -> None:
        bias = heads[site].bias
        assert bias.min() > 0
        assert bias.std() < 2.5 * SITES[site].shading
        assert max(np.abs(np.diff(bias, axis=axis)).max() for axis in range(3)) < 0.05


def test_a_head_on_a_grid_is_the_scanned_head_without_a_pose(
    heads: dict[str, Head], atlas: Atlas
) -> None:
    """The same brain, by its true volumes and where it lies, on the voxels that were asked for."""
    scan = heads["alder"]
    subject = next(
        s for i in range(4) if (s := sample_subject(PhantomParams(seed=1), i)).site == "alder"
    )
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-94, -134, -90)
    shape = (48, 54, 48)
    placed = head_on_grid(subject, "1", SITES["alder"], atlas, affine, shape)
    assert placed.image.shape == shape
    np.testing.assert_allclose(placed.pose, np.eye(4), atol=1e-9)
    for name in ("brain", "ventricle", "grey", "white"):
        assert placed.volumes_ml[name] == pytest.approx(scan.volumes_ml[name], rel=0.06)
    ours, theirs = (in_mni(each, each.brain, each.pose) for each in (placed, scan))
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=0.5)
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.02)


@pytest.fixture(scope="module")
def pairs(atlas: Atlas) -> list[tuple[Head, dict[str, Head]]]:
    """Old people with strokes, of a scanner of 3 T and one of 1.5 T."""
    params = PhantomParams(seed=5, lesion_load=2.0)
    subjects = [sample_subject(params, index) for index in range(16)]
    subjects = [s for s in subjects if s.infarct and s.site in ("alder", "birch")][:2]
    assert {s.site for s in subjects} == {"alder", "birch"}
    return [
        (
            head(s, "1", SITES[s.site], atlas),
            {name: head(s, "1", SITES[s.site], atlas, None, name) for name in ("FLAIR", "T2w")},
        )
        for s in subjects
    ]


@pytest.mark.parametrize("contrast", ["FLAIR", "T2w"])
class TestFurtherContrasts:
    def test_tissues_and_lesions_are_as_bright_as_they_are(
        self, contrast: str, pairs: list[tuple[Head, dict[str, Head]]]
    ) -> None:
        for _, others in pairs:
            scan = others[contrast]
            image = scan.image / scan.bias
            csf, grey, white, lesion = (
                np.median(image[scan.brain & (scan.labels == tissue)])
                for tissue in (CSF, GREY, WHITE, GLIOSIS)
            )
            assert white < 0.95 * grey < 0.9 * lesion
            assert csf < 0.6 * white if contrast == "FLAIR" else csf > 1.2 * lesion

    def test_the_same_anatomy_lies_elsewhere_and_its_pose_says_where(
        self, contrast: str, pairs: list[tuple[Head, dict[str, Head]]]
    ) -> None:
        for t1w, others in pairs:
            scan = others[contrast]
            assert scan.image.shape != t1w.image.shape
            edges = np.linalg.norm(scan.affine[:3, :3], axis=0)
            assert max(edges) == 5.0
            for name in ("ventricle", "infarct"):
                ours, theirs = (
                    in_mni(each, getattr(each, name), each.pose).mean(axis=0)
                    for each in (scan, t1w)
                )
                np.testing.assert_allclose(ours, theirs, atol=1.5)
            centre = np.array([0.0, -20, 10])
            between = scan.pose @ np.linalg.inv(t1w.pose)
            moved = np.linalg.norm(nibabel.affines.apply_affine(between, centre) - centre)
            assert 0.3 < moved < 12


class TestHead:
    def test_volumes_agree_with_masks(self, heads: dict[str, Head]) -> None:
        for scan in heads.values():
            voxel_ml = abs(np.linalg.det(scan.affine[:3, :3])) / 1000
            assert set(scan.volumes_ml) == set(VOLUMES)
            assert scan.brain.sum() * voxel_ml == pytest.approx(scan.volumes_ml["brain"], rel=0.02)
            total = sum(scan.volumes_ml[name] for name in ("grey", "white", "csf"))
            assert 0.97 < total / scan.volumes_ml["brain"] <= 1.02

    def test_brain_volume_follows_head_size(self, atlas: Atlas) -> None:
        subject = sample_subject(PhantomParams(), 0)
        larger = replace(subject, scale=tuple(1.05 * s for s in subject.scale))
        small, large = (
            head(s, "1", SITES["cedar"], atlas, 4.0).volumes_ml["brain"] for s in (subject, larger)
        )
        assert large / small == pytest.approx(1.05**3, rel=0.01)

    def test_infarcts_are_darker_than_the_white_matter_around(
        self, stroke_heads: list[Head]
    ) -> None:
        assert len(stroke_heads) >= 4
        for scan in stroke_heads:
            assert scan.volumes_ml["infarct"] > 0.3
            assert scan.lesion.any()
            around = ndimage.binary_dilation(scan.lesion, iterations=6) & ~scan.lesion
            white = (
                scan.image[around & (scan.labels == WHITE)]
                / scan.bias[around & (scan.labels == WHITE)]
            )
            lesion = scan.image[scan.lesion] / scan.bias[scan.lesion]
            assert np.median(lesion) < 0.85 * np.median(white)

    def test_without_stroke_and_lesion_load_there_is_no_lesion(self, atlas: Atlas) -> None:
        params = PhantomParams(lesion_load=0.0)
        subject = next(
            s for s in (sample_subject(params, i) for i in range(20)) if s.stroke == "no"
        )
        scan = head(subject, "1", SITES[subject.site], atlas, 4.0)
        assert not scan.lesion.any()
        assert scan.volumes_ml["infarct"] == 0

    def test_sessions_share_the_anatomy_but_not_pose_or_noise(self, atlas: Atlas) -> None:
        params = PhantomParams(seed=3, two_session_fraction=1.0, travelling_fraction=0.0)
        subject = sample_subject(params, 0)
        first, second = (head(subject, name, SITES["alder"], atlas) for name in ("1", "2"))
        assert not np.allclose(first.pose, second.pose, atol=0.1)
        # The second scan, carried to the first one's grid by the stated poses, shows one brain.
        move = np.linalg.inv(second.pose @ second.affine) @ first.pose @ first.affine
        carried, brain = (
            ndimage.affine_transform(v.astype(np.float32), move, output_shape=first.brain.shape)
            for v in (second.image / second.bias, second.brain)
        )
        assert 2 * ((brain > 0.5) & first.brain).sum() / (
            (brain > 0.5).sum() + first.brain.sum()
        ) == pytest.approx(1, abs=0.03)
        inside = ndimage.binary_erosion(first.brain, iterations=2)
        same = np.corrcoef(carried[inside], (first.image / first.bias)[inside])[0, 1]
        stranger = head(sample_subject(params, 4), "1", SITES["alder"], atlas)
        move = np.linalg.inv(stranger.pose @ stranger.affine) @ first.pose @ first.affine
        other = ndimage.affine_transform(
            stranger.image / stranger.bias, move, output_shape=first.brain.shape
        )
        assert same > 0.75
        assert same > np.corrcoef(other[inside], (first.image / first.bias)[inside])[0, 1] + 0.2

    def test_heads_repeat_exactly(self, heads: dict[str, Head], atlas: Atlas) -> None:
        again = head(sample_subject(PhantomParams(seed=1), 2), "1", SITES["cedar"], atlas)
        np.testing.assert_array_equal(again.image, heads["cedar"].image)

    def test_a_fine_head_is_the_coarse_one_seen_closer(self, heads: dict[str, Head]) -> None:
        subject = sample_subject(PhantomParams(seed=1), 1)
        fine = head(subject, "1", SITES["birch"], build_atlas(1), 1.0)
        coarse = heads["birch"]
        np.testing.assert_allclose(nibabel.affines.voxel_sizes(fine.affine), 1.0)
        for part, tolerance in (("brain", 0.01), ("white", 0.06), ("ventricle", 0.06)):
            assert fine.volumes_ml[part] == pytest.approx(coarse.volumes_ml[part], rel=tolerance), (
                part
            )
        white = fine.image / fine.bias
        deep = ndimage.binary_erosion(fine.labels == WHITE, iterations=2) & fine.brain
        csf = fine.labels == CSF
        assert np.median(white[csf & fine.brain]) < 0.55 * np.median(white[deep])
