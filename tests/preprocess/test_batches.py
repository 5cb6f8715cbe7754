"""Scans that are registered together, on whatever device, are registered as if each were alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, from_matvec
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.volumes import SLOPE, open_volume
from neurofoundry.errors import UsageError
from neurofoundry.params import validate
from neurofoundry.phantom.scanner import Head
from neurofoundry.preprocess import registration, scan, warp, workers
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.workers import Worker
from neurofoundry.runtime.files import hash_file
from tests.support.preprocessing import LAYOUT, PARAMS, image_of

CPU = torch.device("cpu")
FEW = ((8.0, 6), (4.0, 2))
"""Levels and steps of a warp, for tests of arithmetic alone."""


@pytest.fixture(scope="module")
def brains(heads: list[Head]) -> tuple[list[Image], list[Array]]:
    """Of three scans: as it was made, lying on its side, and with a smaller view."""
    first, second, third = (image_of(one) for one in heads[:3])
    turn = from_matvec(Rotation.from_euler("y", 90, degrees=True).as_matrix(), [12, -7, 9])
    voxels = np.argwhere(heads[2].brain)
    low, high = voxels.min(axis=0) - 4, voxels.max(axis=0) + 9
    shift = from_matvec(np.eye(3), low)
    cut = third.values[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))]
    scans = [
        first,
        Image(second.values, turn @ second.affine),
        Image(np.ascontiguousarray(cut), third.affine @ shift),
    ]
    found = [find_brain(one, PARAMS) for one in scans]
    images = [brain.intensities() for brain in found]
    assert len({image.values.shape for image in images}) == 3
    return images, [brain.centroid() for brain in found]


def test_steps_of_a_batch_are_those_of_each_scan_alone(
    brains: tuple[list[Image], list[Array]], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of 2 mm, from two orientations: more would let rounding grow."""
    monkeypatch.setattr(registration, "STEPS_PER_MM", 0)
    monkeypatch.setattr(registration, "FEWEST_STEPS", 2)
    images, centres = brains
    turns = [np.eye(3), Rotation.from_euler("z", 20, degrees=True).as_matrix()]
    starts = np.stack([registration.initial_poses(centre, turns) for centre in centres])
    together, fits = registration.optimize_poses(images, template.levels[:1], starts)
    assert np.abs(together - starts).max() > 2
    for number, image in enumerate(images):
        alone, fit = registration.optimize_poses([image], template.levels[:1], starts[[number]])
        np.testing.assert_allclose(together[number], alone[0], atol=0.01)
        np.testing.assert_allclose(fits[number], fit[0], atol=1e-3)


def test_affine_maps_of_a_batch_are_those_of_each_scan_alone(
    brains: tuple[list[Image], list[Array]], template: Template
) -> None:
    """As near as rounding lets them be: at 4 mm, a start that is moved by 0.00001 mm ends 0.1 to
    0.2 mm away, too."""
    images, centres = brains
    together = registration.register(images, centres, template.levels, template.centre)
    spread = np.random.default_rng(0).normal(size=(300, 3)) * [28, 35, 28]
    for number, found in enumerate(together):
        (alone,) = registration.register(
            [images[number]], [centres[number]], template.levels, template.centre
        )
        points = template.centre + spread
        apart = np.linalg.norm(apply_affine(found, points) - apply_affine(alone, points), axis=1)
        assert apart.mean() < 0.5
    rotation = registration.closest_rigid(together[1], template.centre)[:3, :3]
    assert np.trace(rotation) < 1.5  # 90 degrees: it was found from another orientation


def test_warps_of_a_batch_are_those_of_each_scan_alone(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warp, "LEVELS", FEW)
    fixed = template.fine
    moving = [
        Image(np.roll(fixed.values, 1, axis=0), fixed.affine),
        Image(np.roll(fixed.values, -1, axis=1), fixed.affine),
    ]
    together = warp.register(fixed, moving)
    for found, image in zip(together, moving, strict=True):
        (alone,) = warp.register(fixed, [image])
        assert np.abs(alone.forward).max() > 1
        np.testing.assert_allclose(found.forward, alone.forward, atol=0.02)
        np.testing.assert_allclose(found.inverse, alone.inverse, atol=0.02)


def test_the_engine_makes_no_tensor_elsewhere_than_it_is_told(
    brains: tuple[list[Image], list[Array]], template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What names no device lands on one that holds no values; the result would have none."""

    def from_numpy(array: ArrayLike) -> None:
        raise AssertionError("from_numpy makes tensors on the CPU, whatever the device")

    # The optimizer of torch counts its steps on the default device; on a GPU that is the CPU.
    step = torch.optim.Adam.step

    def on_cpu(self: torch.optim.Adam, *rest: Any) -> Any:
        with CPU:
            return step(self, *rest)

    monkeypatch.setattr(warp, "LEVELS", FEW)
    expected = registration.register(*brains, template.levels, template.centre, CPU)
    shifted = Image(np.roll(template.fine.values, 1, axis=0), template.fine.affine)
    warps = warp.register(template.fine, [shifted], CPU)
    monkeypatch.setattr(torch, "from_numpy", from_numpy)
    monkeypatch.setattr(torch.optim.Adam, "step", on_cpu)
    with torch.device("meta"):
        assert torch.zeros(1).device.type == "meta"
        found = registration.register(*brains, template.levels, template.centre, CPU)
        warped = warp.register(template.fine, [shifted], CPU)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(warped[0].forward, warps[0].forward)


def test_a_scan_that_is_unusable_or_odd_costs_the_others_of_its_batch_nothing(
    head_files: list[Path], template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / "torn.nii.gz"
    torn.write_bytes(head_files[3].read_bytes()[:30_000])
    files = {"a": head_files[0], "torn": torn, "b": head_files[1], "odd": head_files[2]}
    jobs = [Job(path, name, hash_file(path), name) for name, path in files.items()]
    odd = find_brain(read_scan(files["odd"]), PARAMS).centroid()
    place, sizes = scan.place, []

    def stumble(brains: list[Brain], *rest: Any) -> Any:
        sizes.append(len(brains))
        if any(np.array_equal(brain.centroid(), odd) for brain in brains):
            raise ZeroDivisionError("as only this head does")
        return place(brains, *rest)

    monkeypatch.setattr(scan, "place", stumble)
    results, _ = Worker(PARAMS, template).preprocess(jobs, tmp_path)
    assert [result.key for result in results] == list(files)
    assert sizes == [3, 1, 0, 1, 1]  # together, then each alone; the torn one has no head
    assert results[0].volume_sha256
    assert results[2].volume_sha256
    assert "cannot be read" in (results[1].reason or "")
    assert results[3].reason == (
        "defect of preprocess: ZeroDivisionError. The log says where; please report it"
    )
    assert not (tmp_path / LAYOUT.result.format("odd")).exists()


def test_the_files_of_a_batch_are_those_of_each_scan_alone(
    head_files: list[Path], template: Template, tmp_path: Path
) -> None:
    jobs = [Job(path, f"h{n}", hash_file(path), "k") for n, path in enumerate(head_files[:3])]
    volumes, measures = {}, {}
    for name, batches in (("together", [jobs]), ("alone", [[job] for job in jobs])):
        (tmp_path / name).mkdir()
        results = [
            result
            for batch in batches
            for result in preprocess_scans(
                batch, out=tmp_path / name, params=PARAMS, template=template
            )
        ]
        measures[name] = [result.measures for result in results]
        volumes[name] = [
            open_volume(tmp_path / name / LAYOUT.volume.format(job.scan_id), PARAMS.grid) * SLOPE
            for job in jobs
        ]
    for one, other in zip(volumes["together"], volumes["alone"], strict=True):
        assert np.abs(one - other).mean() < 0.02
    assert np.abs(volumes["together"][0] - volumes["together"][1]).mean() > 0.1
    for ours, theirs in zip(measures["together"], measures["alone"], strict=True):
        assert ours.pop("rotation_deg") == pytest.approx(theirs.pop("rotation_deg"), abs=0.5)
        assert ours == pytest.approx(theirs, rel=0.03, abs=0.02)


def test_a_batch_on_a_cpu_is_refused_as_it_has_no_effect() -> None:
    with pytest.raises(UsageError, match=r"batch.*set device to cuda"):
        validate({"batch": 4}, PreprocessParams, origin="params.yaml")


def test_a_gpu_that_is_not_there_is_named(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = PARAMS.model_copy(update={"device": "cuda", "batch": 4})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(UsageError, match=r"preprocess\.device is cuda.*no GPU.*Set it to cpu"),
        workers.pool(1, Worker(params, template)),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), r"smaller preprocess\.batch \(now 4\)"),
        (torch.AcceleratorError("CUDA error: lost"), r"The GPU failed.*preprocess\.device"),
    ],
)
def test_a_gpu_that_fails_stops_the_run_and_says_what_to_change(
    template: Template,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
    words: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    params = PARAMS.model_copy(update={"device": "cuda", "batch": 4})
    monkeypatch.setattr(workers, "preprocess_scans", fail)
    jobs = [Job(tmp_path / name, name, "", "") for name in "abcd"]
    with pytest.raises(UsageError, match=words):
        Worker(params, template).preprocess(jobs, tmp_path)
