"""A template from files: the same maps give the same results, wrong ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.preprocess import run
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Array, Image, resample
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.preprocess.template import FILES, Template, build, fingerprint
from neurofoundry.preprocess.transform import read_affine
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import Tracker
from tests.support.preprocessing import PARAMS, TRANSFORM, VOLUME, WriteCohort

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def nilearn() -> dict[str, Image]:
    """Nilearn's maps by the names that files of a template have."""
    t1 = templates.load("t1")
    mask = Image((t1.values > 0).astype(np.float32), t1.affine)
    return dict(zip(FILES, (t1, mask, templates.load("gm"), templates.load("wm")), strict=True))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(maps: dict[str, Image], name: str = "template") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, image in maps.items():
            nib.save(nib.Nifti1Image(image.values, image.affine), folder / file)
        return folder

    return save


def transform(
    head_file: Path, template: Template, out: Path, params: PreprocessParams = PARAMS
) -> tuple[Array, bytes]:
    """Where a scan's points of MNI space lie, and its volume."""
    out.mkdir()
    job = Job(head_file, "a", hash_file(head_file), "k")
    (result,) = preprocess_scans([job], out=out, params=params, template=template)
    assert result.reason is None
    points = template.centre + np.random.default_rng(0).normal(size=(300, 3)) * [28, 35, 28]
    return apply_affine(read_affine(out / TRANSFORM), points), (out / VOLUME).read_bytes()


def test_the_maps_of_nilearn_in_files_give_the_same_bytes(
    nilearn: dict[str, Image],
    write: Write,
    template: Template,
    head_files: list[Path],
    tmp_path: Path,
) -> None:
    t1, mask = nilearn["t1.nii.gz"], nilearn["mask.nii.gz"]
    # Around the brain there is a head, as in TemplateFlow's: the mask takes it away.
    head = Image(np.where(mask.values > 0, t1.values, np.float32(2)), t1.affine)
    ours = build(4.0, write(nilearn | {"t1.nii.gz": head}))
    first = transform(head_files[0], ours, tmp_path / "files")
    second = transform(head_files[0], template, tmp_path / "nilearn")
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


def test_another_grid_of_the_same_space_leads_to_the_same_place(
    nilearn: dict[str, Image],
    write: Write,
    template: Template,
    head_files: list[Path],
    tmp_path: Path,
) -> None:
    affine = np.diag([-1.5, 1.5, 1.5, 1.0])  # LAS, and voxels at other places
    affine[:3, 3] = [97, -131, -70]
    moved = {name: resample(image, affine, (131, 156, 120)) for name, image in nilearn.items()}
    ours = build(4.0, write(moved))
    np.testing.assert_allclose(ours.centre, template.centre, atol=0.3)
    here, _ = transform(head_files[0], ours, tmp_path / "ours")
    there, _ = transform(head_files[0], template, tmp_path / "theirs")
    assert np.linalg.norm(here - there, axis=1).mean() < 1.0


def test_the_content_of_the_files_is_part_of_the_key_and_their_place_is_not(
    nilearn: dict[str, Image],
    write: Write,
    head_files: list[Path],
    write_cohort: WriteCohort,
    tmp_path: Path,
) -> None:
    cohort = write_cohort({"head0": head_files[0], "head1": head_files[1]})
    folder = write(nilearn)

    def preprocess(given: Path | None, *, data: Path = Path("/")) -> Workspace:
        work = Workspace(tmp_path / "work", (), Tracker(None), data_version="")  # type: ignore[arg-type]
        work.dir.mkdir(exist_ok=True)
        params = PARAMS.model_copy(update={"template": given})
        run.preprocess(work, data=data, cohort=cohort, params=params, workers=1)
        return work

    first = preprocess(folder.relative_to("/"))  # as seen from the raw data
    assert first.circumstances["reused"] == 0
    grid = json.loads((first.dir / "grid.json").read_text())
    assert {"template_sha256": grid["template_sha256"]} == fingerprint(folder)
    recipe = Volumes(first.dir).recipe
    assert recipe["template_sha256"] == grid["template_sha256"]
    assert "template" not in recipe
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    assert preprocess(moved).circumstances["reused"] == 2
    assert preprocess(None).circumstances["reused"] == 0
    assert "template_sha256" not in Volumes(first.dir).recipe
    with pytest.raises(UsageError, match=r"t1\.nii\.gz cannot be read.*Expected a folder with t1"):
        preprocess(folder)


def shifted(image: Image) -> Image:
    return Image(image.values, from_matvec(np.eye(3), [0, 45, 0]) @ image.affine)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda maps: {"t1.nii.gz": None}, r"t1\.nii\.gz cannot be read: No such file"),
        (lambda maps: {"wm.nii.gz": b"no image"}, r"wm\.nii\.gz is unusable"),
        (
            lambda maps: {"gm.nii.gz": Image(maps["gm.nii.gz"].values[1:], np.eye(4))},
            r"gm\.nii\.gz is on another grid than t1\.nii\.gz, \(196, 233, 189\).*\(197, 233",
        ),
        (
            lambda maps: {
                "gm.nii.gz": Image(maps["gm.nii.gz"].values * 255, maps["gm.nii.gz"].affine)
            },
            r"gm\.nii\.gz has values of 0 to 255; expected probabilities",
        ),
        (
            lambda maps: {name: shifted(image) for name, image in maps.items()},
            r"mask\.nii\.gz overlaps with the brain of MNI152 by a Dice of 0\.[0-7]",
        ),
        (
            lambda maps: {"gm.nii.gz": maps["wm.nii.gz"], "wm.nii.gz": maps["gm.nii.gz"]},
            r"t1\.nii\.gz is not brighter where wm.*expected a T1-weighted template",
        ),
    ],
)
def test_files_that_are_no_template_of_mni_space_are_named(
    nilearn: dict[str, Image], write: Write, change: Callable[..., dict[str, object]], words: str
) -> None:
    folder = write(nilearn)
    for name, content in change(nilearn).items():
        if isinstance(content, Image):
            nib.save(nib.Nifti1Image(content.values, content.affine), folder / name)
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).unlink()
    with pytest.raises(UsageError, match=words):
        templates.read_maps(folder)
