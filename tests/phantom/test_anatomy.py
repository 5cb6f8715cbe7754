from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neurofoundry.phantom import anatomy
from neurofoundry.phantom.anatomy import (
    Subject,
    exponential,
    grow,
    locate,
    paint,
    sample_subject,
    smooth_noise,
)
from neurofoundry.phantom.atlas import Atlas
from neurofoundry.phantom.lattice import LatticeMap, lattice_points
from neurofoundry.phantom.params import PhantomParams

BRAIN = lattice_points((-78.0, -114.0, -70.0), (53, 63, 53), 3.0)


def cohort(subjects: int, **params: float) -> list[Subject]:
    return [sample_subject(PhantomParams(**params), index) for index in range(subjects)]


def volumes_ml(subject: Subject, age: float, atlas: Atlas) -> dict[str, float]:
    painting = paint(grow(subject, age, atlas), BRAIN, 3.0)
    return {
        "ventricle": float(painting.ventricle.sum()) * 0.027,
        "hippocampus": float(painting.hippocampus.sum()) * 0.027,
        "csf": float((painting.fractions[anatomy.CSF] * painting.brain).sum()) * 0.027,
        "infarct": float(painting.infarct.sum()) * 0.027,
        "white_lesion": float(painting.white_lesion.sum()) * 0.027,
    }


class TestLabels:
    @pytest.mark.parametrize("seed", range(5))
    def test_default_cohorts_hold_the_declared_shares(self, seed: int) -> None:
        subjects = cohort(160, seed=seed)
        ages = np.array([s.age for s in subjects])
        ill = np.array([s.diagnosis == "AD" for s in subjects])
        assert 0.32 <= ill.mean() <= 0.39
        assert 0.40 <= ill[ages > 55].mean() <= 0.50
        assert 0.33 <= np.mean([s.stroke == "yes" for s in subjects]) <= 0.37
        assert np.mean([s.sex == "F" for s in subjects]) == pytest.approx(0.5, abs=0.02)
        # A traveller's share is of three sites in four.
        assert np.mean([s.travels_to is not None for s in subjects]) == pytest.approx(
            0.75 * 0.3, abs=0.03
        )
        later = [s.interval is not None and s.travels_to is None for s in subjects]
        assert np.mean(later) == pytest.approx(0.05, abs=0.02)
        assert ages[ill].min() > 55
        assert ages.min() >= 20
        assert ages.max() <= 90
        assert np.median(ages) > 60

    @pytest.mark.parametrize("seed", range(5))
    def test_no_site_is_lopsided(self, seed: int) -> None:
        subjects = cohort(160, seed=seed)
        for site in anatomy.SITE_NAMES:
            members = [s for s in subjects if s.site == site]
            assert len(members) == 40
            assert 0.22 <= np.mean([s.diagnosis == "AD" for s in members]) <= 0.5
            assert 0.27 <= np.mean([s.stroke == "yes" for s in members]) <= 0.43
            assert 0.4 <= np.mean([s.sex == "F" for s in members]) <= 0.6
            assert np.mean([s.age for s in members]) == pytest.approx(64, abs=3.5)

    def test_labels_do_not_predict_one_another(self) -> None:
        old = [s for s in cohort(400) if s.age > 55]
        table = np.array(
            [[s.diagnosis == "AD", s.stroke == "yes", s.sex == "F", s.age] for s in old], float
        )
        correlation = np.corrcoef(table.T)
        assert np.abs(correlation[np.triu_indices(4, 1)]).max() < 0.25

    def test_a_subject_is_the_same_in_a_larger_cohort_and_another_with_another_seed(self) -> None:
        small, large = PhantomParams(subjects=8, seed=3), PhantomParams(subjects=500, seed=3)
        assert sample_subject(small, 5) == sample_subject(large, 5)
        assert sample_subject(PhantomParams(seed=4), 5) != sample_subject(small, 5)

    def test_effects_change_only_what_they_name(self) -> None:
        weak, strong = cohort(40, ad_effect=0.5), cohort(40, ad_effect=1.0)
        for a, b in zip(weak, strong, strict=True):
            assert b.severity == pytest.approx(2 * a.severity)
            assert replace(a, severity=b.severity) == b

    def test_second_sessions_follow_one_to_three_years_later(self) -> None:
        for subject in cohort(40, two_session_fraction=1.0, travelling_fraction=0.0):
            (_, first), (_, second) = subject.sessions
            assert 1 <= round(second - first, 1) <= 3
            assert subject.site_of("1") == subject.site_of("2") == subject.site
        nobody = cohort(40, two_session_fraction=0.0, travelling_fraction=0.0)
        assert all(len(s.sessions) == 1 for s in nobody)

    def test_travellers_go_to_another_familiar_site_within_two_months(self) -> None:
        subjects = cohort(120, two_session_fraction=0.0, travelling_fraction=1.0)
        external = [s for s in subjects if s.site == anatomy.SITE_NAMES[-1]]
        assert all(s.travels_to is None and len(s.sessions) == 1 for s in external)
        routes = set()
        for subject in (s for s in subjects if s not in external):
            (_, first), (_, second) = subject.sessions
            assert 0 <= round(second - first, 1) <= 0.2
            routes.add((subject.site_of("1"), subject.site_of("2")))
        familiar = anatomy.SITE_NAMES[:-1]
        assert routes == {(a, b) for a in familiar for b in familiar if a != b}

    def test_who_travels_is_otherwise_the_same_person(self) -> None:
        for stays, goes in zip(
            cohort(40, travelling_fraction=0.0), cohort(40, travelling_fraction=0.9), strict=True
        ):
            same = replace(goes, travels_to=stays.travels_to, interval=stays.interval)
            assert same == stays

    def test_men_have_larger_heads(self) -> None:
        volume = {
            sex: np.array([np.prod(s.scale) for s in cohort(400) if s.sex == sex]) for sex in "FM"
        }
        spread = np.sqrt((volume["F"].var() + volume["M"].var()) / 2)
        assert 0.8 < (volume["M"].mean() - volume["F"].mean()) / spread < 2


class TestDeformation:
    def test_exponential_is_the_flow_of_the_velocity(self) -> None:
        rng = np.random.default_rng(1)
        velocity = LatticeMap(2 * smooth_noise(rng, (14, 14, 14, 3), 3.0), (0.0, 0.0, 0.0), 5.0)
        points = rng.uniform(20, 45, (500, 3)).astype(np.float32)
        flowed = points.copy()
        for _ in range(200):
            flowed += velocity.sample(flowed) / 200
        displacement = exponential(velocity).sample(points)
        assert np.abs(flowed - points).max() > 2
        np.testing.assert_allclose(points + displacement, flowed, atol=0.12)

    @pytest.mark.parametrize(("index", "severity"), [(0, 0.0), (5, 2.0), (13, 4.5), (27, 4.5)])
    def test_the_map_to_the_atlas_never_folds(
        self, index: int, severity: float, atlas: Atlas
    ) -> None:
        subject = replace(sample_subject(PhantomParams(seed=2), index), severity=severity)
        grown = grow(subject, subject.age + 3, atlas)
        columns = [
            locate(grown, BRAIN + step)[0].astype(float) - locate(grown, BRAIN - step)[0]
            for step in np.eye(3, dtype=np.float32) / 2
        ]
        assert np.linalg.det(np.stack(columns, axis=-1)).min() > 0

    def test_noise_fields_have_unit_variance(self) -> None:
        noise = smooth_noise(np.random.default_rng(0), (50, 50, 50, 4), 1.3)
        assert noise.std() == pytest.approx(1, abs=0.05)
        assert noise.mean() == pytest.approx(0, abs=0.05)

    def test_the_closest_rigid_removes_turns_and_shifts_of_the_deformation(
        self, atlas: Atlas
    ) -> None:
        subject = sample_subject(PhantomParams(), 3)
        rigid = anatomy.closest_rigid(grow(subject, subject.age, atlas))
        rotation = rigid[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert np.rad2deg(np.arccos((np.trace(rotation) - 1) / 2)) < 10


class TestPaint:
    def test_shares_add_up_to_one(self, atlas: Atlas) -> None:
        subject = next(s for s in cohort(40) if s.infarct)
        points = np.random.default_rng(0).uniform(-120, 100, (30_000, 3)).astype(np.float32)
        for edge in (1.0, 3.0):
            painting = paint(grow(subject, subject.age, atlas), points, edge)
            np.testing.assert_allclose(painting.fractions.sum(axis=0), 1, atol=1e-5)
            assert painting.fractions.min() > -1e-6

    def test_ventricles_and_sulci_widen_with_age(self, atlas: Atlas) -> None:
        subject = replace(sample_subject(PhantomParams(), 1), severity=0.0)
        series = [volumes_ml(subject, age, atlas) for age in (25, 50, 70, 90)]
        for name in ("ventricle", "csf"):
            assert (np.diff([v[name] for v in series]) > 0).all()
        assert 8 < series[0]["ventricle"] < 25
        assert series[-1]["ventricle"] > 1.5 * series[0]["ventricle"]

    def test_disease_shrinks_hippocampi_and_widens_ventricles(self, atlas: Atlas) -> None:
        subject = replace(sample_subject(PhantomParams(), 1), age=75.0)
        stages = [
            volumes_ml(replace(subject, severity=severity), 75, atlas)
            for severity in (0.0, 0.5, 1.0, 2.0)
        ]
        assert (np.diff([v["hippocampus"] for v in stages]) < 0).all()
        assert (np.diff([v["ventricle"] for v in stages]) > 0).all()
        assert 0.6 < stages[2]["hippocampus"] / stages[0]["hippocampus"] < 0.9

    def test_disease_progresses_between_sessions(self, atlas: Atlas) -> None:
        subject = replace(sample_subject(PhantomParams(), 1), age=70.0, severity=1.0)
        then, now = (volumes_ml(subject, age, atlas) for age in (70, 73))
        assert now["hippocampus"] < then["hippocampus"]
        assert now["ventricle"] > then["ventricle"]

    def test_patients_have_smaller_hippocampi_than_controls(self, atlas: Atlas) -> None:
        old = [s for s in cohort(36) if s.age > 60]
        sizes: dict[str, list[float]] = {"CN": [], "AD": []}
        for subject in old:
            anatomy_now = grow(subject, subject.age, atlas)
            # Head size is noise here: the volume per volume of head is the effect.
            points = BRAIN[(BRAIN[:, 2] < 10) & (np.abs(BRAIN[:, 0]) < 45)]
            share = paint(anatomy_now, points, 3.0).hippocampus.sum() / np.prod(subject.scale)
            sizes[subject.diagnosis].append(float(share))
        assert np.median(sizes["AD"]) < 0.9 * np.median(sizes["CN"])

    def test_only_stroke_patients_have_infarcts_of_about_the_asked_volume(
        self, atlas: Atlas
    ) -> None:
        subjects = cohort(8, stroke_ml=20)
        infarcts_ml = [volumes_ml(s, s.age, atlas)["infarct"] for s in subjects]
        assert any(s.infarct for s in subjects)
        assert [ml > 0.3 for ml in infarcts_ml] == [s.stroke == "yes" for s in subjects]
        radii = [s.infarct.radii for s in cohort(400, stroke_ml=20) if s.infarct]
        median = np.median([4 / 3 * np.pi * np.prod(r) / 1000 for r in radii])
        # Deep infarcts are smaller than the others, and elongated ones larger.
        assert 12 < median < 30

    def test_white_matter_lesions_come_with_age_and_load(self, atlas: Atlas) -> None:
        subject = replace(sample_subject(PhantomParams(), 2), lesion_trait=0.5)
        young, old = (volumes_ml(subject, age, atlas)["white_lesion"] for age in (25, 85))
        none = volumes_ml(replace(subject, lesion_load=0.0), 85, atlas)["white_lesion"]
        more = volumes_ml(replace(subject, lesion_load=2.0), 85, atlas)["white_lesion"]
        assert none == 0
        assert young < old < more
