"""FLAIR and T2w of phantoms, whose heads have moved by known amounts since the T1w image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine, from_matvec
from PIL import Image as Pillow
from scipy.spatial.transform import Rotation

from neurofoundry.contracts.cohort import CONTRASTS, SCANS
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import SLOPE, VOLUMES, Volumes, open_volume
from neurofoundry.errors import DataError, UsageError
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, Head, head
from neurofoundry.preprocess import run
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.coregistration import Coregistration, coregister, judge, measure
from neurofoundry.preprocess.params import CoregistrationParams, PreprocessParams
from neurofoundry.preprocess.picture import MASK_COLOUR
from neurofoundry.preprocess.placement import place
from neurofoundry.preprocess.resample import Image, resample
from neurofoundry.preprocess.scan import Further, FurtherResult, Job, Result, preprocess_scans
from neurofoundry.preprocess.template import Template
from neurofoundry.preprocess.transform import read_affine
from neurofoundry.runtime import verify
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import Workspace
from neurofoundry.runtime.tracking import Tracker
from tests.support.preprocessing import LAYOUT, PARAMS, WriteCohort, image_of, write_heads

BOUNDS = CoregistrationParams()


@pytest.fixture(scope="session")
def flairs() -> list[Head]:
    """FLAIR of the heads of conftest.py, and of the first a T2w image."""
    atlas = build_atlas(2)
    subjects = [sample_subject(PhantomParams(seed=3), index) for index in range(3)]
    asked = [(subjects[0], "FLAIR"), (subjects[1], "FLAIR"), (subjects[0], "T2w")]
    return [head(s, s.sessions[0][0], SITES[s.site], atlas, None, c) for s, c in asked]


@pytest.fixture(scope="session")
def flair_files(flairs: list[Head], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_heads(flairs, tmp_path_factory.mktemp("flairs"), "flair")


@pytest.fixture(scope="session")
def brain(heads: list[Head], template: Template) -> Brain:
    """That of the first head, as preprocess finds it."""
    found = find_brain(image_of(heads[0]), PARAMS)
    ((_, settled),) = place([found], [found.intensities()], PARAMS, template)
    return settled


@pytest.fixture(scope="session")
def own(brain: Brain, flairs: list[Head]) -> Coregistration:
    return coregister(brain, image_of(flairs[0]), 2.0)


def errors_mm(found: Coregistration, t1w: Head, other: Head) -> np.ndarray:
    """How far voxels of the brain lie from where they are in the other image."""
    true = np.linalg.inv(other.pose) @ t1w.pose
    points = apply_affine(t1w.affine, np.argwhere(t1w.brain)[::50])
    found_there, truly_there = (apply_affine(m, points) for m in (found.to_other, true))
    return np.linalg.norm(found_there - truly_there, axis=1)


def steepness_at_edges(picture: Path) -> float:
    """How much steeper a picture is where red lines cross it than elsewhere in the head."""
    with Pillow.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(float)
    red = (pixels == MASK_COLOUR).all(axis=2)
    grey = np.where(red, np.nan, pixels[..., 0])
    across = np.abs(grey[:, 2:] - grey[:, :-2])
    on, off = across[red[:, 1:-1]], across[~red[:, 1:-1] & (grey[:, 1:-1] > 20)]
    return float(np.nanmean(on) / np.nanmean(off))


def test_the_pose_is_rigid_and_that_of_the_phantom(
    own: Coregistration, heads: list[Head], flairs: list[Head]
) -> None:
    turn = own.to_other[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(turn) == pytest.approx(1, abs=1e-5)
    before = errors_mm(Coregistration(np.eye(4), {}), heads[0], flairs[0])
    after = errors_mm(own, heads[0], flairs[0])
    assert before.mean() > 1.5
    assert after.mean() < 0.7
    assert after.max() < 1.2
    moved = np.linalg.inv(flairs[0].pose) @ heads[0].pose
    cosine = (np.trace(moved[:3, :3]) - 1) / 2
    assert own.measures["turned_deg"] == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.5)


def test_a_t2w_image_whose_header_has_lost_its_place_is_found(
    brain: Brain, heads: list[Head], flairs: list[Head]
) -> None:
    """The head has turned by 40° about an oblique axis, further than one start reaches."""
    turn = Rotation.from_rotvec(np.radians(40) * np.array([2.0, -1.0, 2.0]) / 3).as_matrix()
    lost = from_matvec(turn, (60, -45, 30))
    image = Image(flairs[2].image.astype(np.float32), lost @ flairs[2].affine)
    found = coregister(brain, image, 4.0)
    back = replace(found, to_other=np.linalg.inv(lost) @ found.to_other)
    assert errors_mm(back, heads[0], flairs[2]).mean() < 1
    assert judge(found.measures, BOUNDS) is None


def test_another_persons_image_is_told_by_its_edges(
    brain: Brain, own: Coregistration, flairs: list[Head]
) -> None:
    assert judge(own.measures, BOUNDS) is None
    others = coregister(brain, image_of(flairs[1]), 2.0)
    assert own.measures["edges"] > 1.3 * others.measures["edges"]
    assert str(judge(others.measures, BOUNDS)).startswith("not the head of the T1w image: ")


def test_noise_lowers_edges_as_another_head_does_and_not_their_peak(
    brain: Brain, own: Coregistration, flairs: list[Head]
) -> None:
    """Noise of 9 % of the brightest, more than clinics have."""
    image = image_of(flairs[0])
    top = np.percentile(image.values, 99.5)
    noise = np.random.default_rng(4).normal(0, 0.09 * top, (2, *image.values.shape))
    noisy = Image(np.hypot(image.values + noise[0], noise[1]).astype(np.float32), image.affine)
    measures = measure(brain, noisy, own.to_other)
    assert measures["edges"] < 0.95 * own.measures["edges"]
    assert judge(measures, BOUNDS) is None


def test_the_peak_is_against_edges_of_the_image_moved_aside(
    brain: Brain, own: Coregistration, flairs: list[Head]
) -> None:
    """The oracle moves the map to the image, not the image on its grid."""
    image = image_of(flairs[0])
    aside = [
        measure(brain, image, own.to_other @ from_matvec(np.eye(3), 6 * way))["edges"]
        for way in (*np.eye(3), *-np.eye(3))
    ]
    expected = own.measures["edges"] / np.mean(aside)
    assert measure(brain, image, own.to_other)["peak"] == pytest.approx(expected, rel=0.02)
    assert measure(brain, image, own.to_other @ from_matvec(np.eye(3), [9, 0, 0]))["peak"] < 1.2


def test_edges_are_those_of_a_loop(brain: Brain, flairs: list[Head], own: Coregistration) -> None:
    """cos² of the angle between gradients; those of the median strength count half."""
    from scipy import ndimage

    from neurofoundry.preprocess.resample import antialias, coarsen

    first = coarsen(brain.uncut(), 3.0)
    second = resample(
        antialias(image_of(flairs[0]), 3.0),
        first.affine,
        first.values.shape,
        transform=own.to_other,
        outside=np.nan,
    ).values
    mask = Image(brain.inside.astype(np.float32), brain.head.affine)
    inside = resample(antialias(mask, 3.0), first.affine, first.values.shape).values > 0.5
    inside = ndimage.binary_erosion(inside & np.isfinite(second))
    second = np.nan_to_num(second)

    def slope(volume: np.ndarray, i: int, j: int, k: int) -> np.ndarray:
        return (
            np.array(
                [
                    volume[i + 1, j, k] - volume[i - 1, j, k],
                    volume[i, j + 1, k] - volume[i, j - 1, k],
                    volume[i, j, k + 1] - volume[i, j, k - 1],
                ],
                float,
            )
            / 2
        )

    pairs = [
        (slope(first.values, *voxel), slope(second, *voxel))
        for voxel in np.argwhere(inside).tolist()
    ]
    weak = [np.median([each[n] @ each[n] for each in pairs]) for n in (0, 1)]
    parallel = [(a @ b) ** 2 / ((a @ a + weak[0]) * (b @ b + weak[1])) for a, b in pairs]
    measured = measure(brain, image_of(flairs[0]), own.to_other)["edges"]
    assert measured == pytest.approx(np.mean(parallel), rel=1e-3)


def test_the_t1w_image_itself_is_no_other_contrast(brain: Brain, heads: list[Head]) -> None:
    measures = measure(brain, image_of(heads[0]), np.eye(4))
    assert measures["peak"] > BOUNDS.peak.min  # type: ignore[operator]
    assert str(judge(measures, BOUNDS)).startswith("the contrast of the T1w image")
    lacking = str(judge({**measures, "peak": float("nan"), "likeness": 0.5}, BOUNDS))
    assert lacking.endswith("nan, expected at least 1.4")


class TestScan:
    @pytest.fixture(scope="class")
    @classmethod
    def made(
        cls,
        head_files: list[Path],
        flair_files: list[Path],
        template: Template,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> tuple[Path, Result]:
        """The first head with its FLAIR, and a T2w that is no image."""
        out = tmp_path_factory.mktemp("scan")
        broken = out / "broken.nii.gz"
        broken.write_bytes(b"no image")
        further = tuple(
            Further(contrast, path, hash_file(path))
            for contrast, path in (("FLAIR", flair_files[0]), ("T2w", broken))
        )
        job = Job(head_files[0], "a", hash_file(head_files[0]), "k", further=further)
        return out, preprocess_scans([job], out=out, params=PARAMS, template=template)[0]

    def test_a_further_contrast_lies_on_the_grid_within_the_brain(
        self, made: tuple[Path, Result], heads: list[Head], flairs: list[Head]
    ) -> None:
        out, result = made
        volume, picture, transform = (
            out / name.format("a") for name in LAYOUT.of_contrast("FLAIR")
        )
        t1w, flair = (
            open_volume(path, PARAMS.grid) * SLOPE
            for path in (out / LAYOUT.volume.format("a"), volume)
        )
        assert result.further["FLAIR"].volume_sha256 == hash_file(volume)
        assert not flair[t1w == 0].any()
        seen = flair != 0
        assert seen.sum() > 0.98 * (t1w != 0).sum()
        assert flair[seen].mean() == pytest.approx(0, abs=0.01)
        assert flair[seen].std() == pytest.approx(1, abs=0.01)
        assert steepness_at_edges(picture) > 2
        # Fluid is dark in both; of the rest, grey matter is darker here and brighter there.
        to_other = read_affine(transform)
        to_scan = read_affine(out / LAYOUT.transform.format("a"))
        grid = PARAMS.grid
        truth = np.linalg.inv(flairs[0].pose) @ heads[0].pose
        np.testing.assert_allclose(to_other[:3, 3], truth[:3, 3], atol=2.5)
        image = Image(flairs[0].ventricle.astype(np.float32), flairs[0].affine)
        fluid = resample(image, grid.affine, grid.shape, transform=to_other @ to_scan).values.T
        assert flair[(fluid > 0.9) & seen].mean() < -1.5

    def test_one_that_cannot_be_read_costs_the_scan_nothing(
        self, made: tuple[Path, Result]
    ) -> None:
        _, result = made
        assert result.reason is None
        assert result.volume_sha256
        assert result.further["T2w"].reason is not None
        assert result.further["T2w"].reason.startswith("the file cannot be read")
        assert result.further["T2w"].volume_sha256 is None

    def test_t1w_alone_gives_the_same_volume_and_record(
        self, made: tuple[Path, Result], head_files: list[Path], template: Template, tmp_path: Path
    ) -> None:
        job = Job(head_files[0], "a", hash_file(head_files[0]), "k")
        (alone,) = preprocess_scans([job], out=tmp_path, params=PARAMS, template=template)
        assert alone == replace(made[1], further={})
        assert "further" not in (tmp_path / LAYOUT.result.format("a")).read_text()

    def test_one_that_has_changed_since_ingest_is_made_again(
        self, head_files: list[Path], flair_files: list[Path], template: Template, tmp_path: Path
    ) -> None:
        further = (Further("FLAIR", flair_files[0], "0" * 64),)
        job = Job(head_files[0], "a", hash_file(head_files[0]), "k", further=further)
        (result,) = preprocess_scans([job], out=tmp_path, params=PARAMS, template=template)
        assert result.reason == "FLAIR: the file has changed since ingest: run ingest again"
        assert not list(tmp_path.iterdir())


class TestStage:
    @pytest.fixture
    def cohort(
        self, head_files: list[Path], flair_files: list[Path], write_cohort: WriteCohort
    ) -> Path:
        """Three scans: the first with its FLAIR, the second with that of the first, the third with
        none."""
        cohort = write_cohort({f"h{n}": head_files[n] for n in range(3)})
        table = read_table(cohort / "scans.tsv", SCANS)
        flair = flair_files[0]
        table["path_FLAIR"] = [str(flair.relative_to("/"))] * 2 + [None]
        table["sha256_FLAIR"] = [hash_file(flair)] * 2 + [None]
        write_table(table, cohort / "scans.tsv", SCANS)
        return cohort

    def preprocess(
        self, cohort: Path, out: Path, required: str, params: PreprocessParams = PARAMS
    ) -> Workspace:
        both = pd.DataFrame({"contrast": ["T1w", "FLAIR"], "required": ["yes", required]})
        write_table(both, cohort / "contrasts.tsv", CONTRASTS)
        tracker = Tracker(None)  # type: ignore[arg-type]  # preprocess records its summary only
        work = Workspace(out, (), tracker, data_version="")
        out.mkdir(exist_ok=True)
        run.preprocess(work, data=Path("/"), cohort=cohort, params=params, workers=1)
        return work

    def test_a_wrong_or_a_missing_contrast_costs_a_scan_what_the_policy_says(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        self.preprocess(cohort, out, "no")
        table = read_table(out / "scans.tsv", VOLUMES).set_index("scan_id")
        assert table["usable"].all()
        assert table["volume_FLAIR"].notna().tolist() == [True, False, False]
        assert table["volume_sha256_FLAIR"].notna().tolist() == [True, False, False]
        wrong, missing = table["reason_FLAIR"].tolist()[1:]
        assert wrong.startswith("not the head of the T1w image")
        assert missing == "the session has none"
        cards = (out / "qc.html").read_text()
        assert cards.count('"contrast": "FLAIR"') == 3
        edges = table["edges_FLAIR"].astype(float)
        assert edges["h0"] > 1.3 * edges["h1"]
        volumes = Volumes(out)
        assert volumes.contrasts == ("T1w", "FLAIR")
        assert volumes.find("h0", "FLAIR") == out / table.loc["h0", "volume_FLAIR"]
        assert volumes.find("h1", "FLAIR") is None
        write_json(out / "stage.json", {"stage": "preprocess", "contents": {}})
        assert set(verify.recorded_items(out)) >= {table.loc["h0", "volume_FLAIR"]}

        made = (out / table.loc["h0", "volume_FLAIR"]).stat().st_ino
        with pytest.raises(DataError, match="1 of 3 scans can be used"):
            self.preprocess(cohort, out, "yes")
        # Another policy repeats no preprocessing.
        assert (out / table.loc["h0", "volume_FLAIR"]).stat().st_ino == made
        table = read_table(out / "scans.tsv", VOLUMES).set_index("scan_id")
        assert table["usable"].tolist() == [True, False, False]
        assert table.loc["h1", "reason"].startswith("FLAIR: not the head of the T1w image")
        assert table.loc["h2", "reason"] == "FLAIR: the session has none"

    def test_normalizations_of_t1w_alone_are_refused(self, cohort: Path, tmp_path: Path) -> None:
        params = PARAMS.model_copy(update={"normalization": "nyul"})
        with pytest.raises(UsageError, match=r"preprocess.normalization .* FLAIR.* zscore"):
            self.preprocess(cohort, tmp_path / "out", "no", params)


def test_t1w_alone_says_nothing_of_contrasts(tmp_path: Path) -> None:
    assert FurtherResult(None).measures == {}
    from neurofoundry.contracts.volumes import VolumesRecord, write_record

    plain: Mapping[str, Any] = PARAMS.model_dump(mode="json", exclude={"coregistration"})
    write_record(tmp_path, VolumesRecord(grid=PARAMS.grid.describe(), params=dict(plain)))
    assert Volumes(tmp_path).contrasts == ("T1w",)
    assert "contrasts" not in (tmp_path / "grid.json").read_text()
