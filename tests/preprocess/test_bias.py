from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage

from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import bias
from neurofoundry.preprocess.resample import Image, coarsen, resample
from tests.support.preprocessing import image_of


def test_a_known_field_over_tissue_is_found() -> None:
    rng = np.random.default_rng(0)
    shape, affine = (52, 60, 50), from_matvec(np.diag([3.0, 3, 3]), [-70, -90, -60])
    places = (np.moveaxis(np.indices(shape), 0, -1) - np.array(shape) / 2) / (np.array(shape) / 2)
    inside = (places**2).sum(axis=-1) < 0.7
    tissue = np.where(ndimage.gaussian_filter(rng.normal(size=shape), 2.5) > 0, 1.0, 0.65)
    true = 0.25 * places[..., 0] + 0.15 * places[..., 2] ** 2 - 0.1 * places[..., 1]
    values = np.where(inside, 400 * tissue * np.exp(true) + rng.normal(0, 8, shape), 5)
    head = Image(values.astype(np.float32), affine)
    field = bias.estimate(head, inside)
    found = np.log(bias.bias_at(field, apply_affine(affine, np.argwhere(inside))))
    truth = true[inside]
    assert np.corrcoef(found, truth)[0, 1] > 0.97
    assert (found - truth).std() < 0.25 * truth.std()
    assert abs(found.mean()) < 0.02
    corrected = bias.correct(head, field).values[inside]
    np.testing.assert_allclose(corrected, values[inside] / np.exp(found), rtol=1e-4)


def test_the_shading_of_synthetic_heads_is_mostly_removed(heads: list[Head]) -> None:
    before, after = [], []
    for scan in heads[:3]:
        image = image_of(scan)
        head = coarsen(image, 3.0)
        brain = Image(scan.brain.astype(np.float32), scan.affine)
        inside = resample(brain, head.affine, head.values.shape).values > 0.5
        field = bias.estimate(head, inside)
        points = apply_affine(scan.affine, np.argwhere(scan.brain))
        true = np.log(scan.bias[scan.brain])
        before.append(true.std())
        after.append((np.log(bias.bias_at(field, points)) - true).std())
    assert np.mean(after) < 0.75 * np.mean(before)


def test_the_field_goes_on_at_its_edge_and_a_head_without_a_brain_has_none() -> None:
    log = np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 10
    field = Image(log, from_matvec(np.diag([6.0, 6, 6]), [0, 0, 0]))
    points = np.array([[0.0, 0, 0], [3, 0, 0], [-50, -50, -50], [90, 90, 90]])
    np.testing.assert_allclose(np.log(bias.bias_at(field, points)), [0, 0.2, 0, 0.7], atol=1e-6)
    empty = Image(np.ones((20, 20, 20), np.float32), np.diag([3.0, 3, 3, 1]))
    nothing = bias.estimate(empty, np.zeros((20, 20, 20), bool))
    np.testing.assert_array_equal(bias.correct(empty, nothing).values, empty.values)
