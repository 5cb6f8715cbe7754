from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neurofoundry.ingest.dicom_header import Header
from neurofoundry.ingest.dicom_series import Series, contrast_of, why_not

HEADER = Header(
    age_refused=False,
    subject="sub-x", study="s", series="r", day="", number=1, age=None, sex=None, scanner="",
    field_strength=3.0, modality="MR", image_type=frozenset({"ORIGINAL", "PRIMARY", "M"}), body="",
    agent=False, angiography=False, sequence=frozenset({"GR"}), is_3d=True, repetition_time=2300,
    echo_time=3, inversion_time=900, flip_angle=9, pixel_mm=1, thickness_mm=1, frames=1,
    orientation=(1, 0, 0, 0, 1, 0), position=0.0, cut_short=False,
    offset=(0.0, 0.0), stack=None, other_weighting="", instance="", birth="",
)  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "sequence", "times", "t1w"),
    [
        ("MPRAGE", "GR IR", (2300, 3.0, 900, 9), True),
        ("IR-SPGR", "GR", (7.0, 3.0, 400, 11), True),
        ("T1-TFE without TI", "GR", (8.1, 3.7, None, 8), True),
        ("SPGR", "RM", (25.0, 5.0, None, 30), True),
        ("2D FLASH", "GR", (250, 2.5, None, 70), True),
        ("spin echo", "SE", (500, 12, None, 90), True),
        ("T1-FLAIR", "SE IR", (2000, 20, 800, 111), True),
        ("T2-FLAIR", "SE IR", (9000, 90, 2500, 150), False),
        ("T2 TSE", "SE", (5000, 95, None, 150), False),
        ("PD", "SE", (2500, 15, None, 90), False),
        ("STIR", "SE IR", (4000, 40, 160, 150), False),
        ("T2* GRE", "GR", (650, 20, None, 20), False),
        ("SWI", "GR", (28, 20, None, 15), False),
        ("QSM, first echo", "GR", (45, 6, None, 15), False),
        ("T1w of multi-parameter mapping", "GR", (18.7, 2.2, None, 20), True),
        ("bSSFP", "GR", (5, 2.3, None, 60), False),
        ("BOLD", "EP GR", (700, 10, None, 60), False),
        ("no times", "GR", (None, None, None, None), False),
    ],
)
def test_t1w_is_recognised_by_technique(
    protocol: str, sequence: str, times: Sequence[float | None], t1w: bool
) -> None:
    tr, te, ti, flip = times
    candidate = series(
        sequence=frozenset(sequence.split()),
        repetition_time=tr,
        echo_time=te,
        inversion_time=ti,
        flip_angle=flip,
    )
    assert (why_not(candidate, "T1w") is None) is t1w, protocol
    assert t1w or str(why_not(candidate, "T1w")).startswith("not T1w: ")


@pytest.mark.parametrize(
    ("protocol", "sequence", "times", "contrast"),
    [
        ("2D FLAIR, Siemens", "SE IR", (9000, 90, 2500), "FLAIR"),
        ("2D FLAIR at 1.5 T", "SE IR", (8000, 120, 2200), "FLAIR"),
        ("3D SPACE FLAIR", "SE IR", (5000, 395, 1800), "FLAIR"),
        ("3D FLAIR, research mode", "RM", (4800, 340, 1650), "FLAIR"),
        ("2D TSE", "SE", (5000, 95, None), "T2w"),
        ("3D SPACE", "SE", (3200, 408, None), "T2w"),
        ("MPRAGE", "GR IR", (2300, 3.0, 900), "T1w"),
        ("T1-FLAIR", "SE IR", (2000, 20, 800), "T1w"),
        ("PD", "SE", (2500, 15, None), None),
        ("STIR", "SE IR", (4000, 80, 160), None),
        ("EPI T2", "EP SE", (5000, 95, None), None),
        ("T2* GRE", "GR", (2500, 65, None), None),
        ("DIR", "SE IR", (7500, 40, 3000), None),
        ("FLAIR whose TI is lost", "SE IR", (9000, 95, None), None),
    ],
)
def test_flair_and_t2w_are_recognised_by_technique(
    protocol: str, sequence: str, times: Sequence[float | None], contrast: str | None
) -> None:
    tr, te, ti = times
    candidate = series(
        sequence=frozenset(sequence.split()),
        repetition_time=tr,
        echo_time=te,
        inversion_time=ti,
        flip_angle=9.0 if contrast == "T1w" else 150.0,
    )
    found = contrast_of(candidate, ("T1w", "FLAIR", "T2w"))
    if contrast is None:
        assert str(found).startswith("not T1w or FLAIR or T2w: "), protocol
    else:
        assert found == contrast, protocol
        assert str(contrast_of(candidate, ("T1w", "PDw"))).startswith("not T1w or PDw") or (
            contrast == "T1w"
        )


def series(slices: int = 160, **header: Any) -> Series:
    made = Series(replace(HEADER, **header))
    made.files = [Path(str(number)) for number in range(slices)]
    made.positions = [float(number) for number in range(slices)]
    made.orientations = {made.header.orientation}
    return made


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"modality": "CT"}, "not T1w: modality CT, expected MR"),
        ({"image_type": frozenset({"DERIVED", "MPR"})}, "not T1w: a derived image (DERIVED, MPR)"),
        ({"image_type": frozenset({"ORIGINAL", "P"})}, "not T1w: not a magnitude image (P)"),
        ({"body": "KNEE"}, "not a head: body part KNEE"),
        ({"agent": True}, "contrast agent"),
        ({"angiography": True, "inversion_time": None}, "not T1w: GR angiography"),
        ({"slices": 12}, "too few slices: 12, expected at least 20"),
    ],
)
def test_other_series_are_told_apart(header: dict[str, Any], reason: str) -> None:
    assert str(why_not(series(**header), "T1w")).startswith(reason)


@pytest.mark.parametrize(
    "body",
    [
        "KOPF",
        "SCHÄDEL",
        "CABEZA",
        "CÉRÉBRO",
        "ENCEPHALE",
        "PITUITARY",
        "UNKNOWN",
        "HEADNECK",
        "X^Y",
    ],
)
def test_heads_in_other_languages_and_unknown_words_leave_it_to_technique(body: str) -> None:
    assert why_not(_whole(replace(HEADER, body=body)), "T1w") is None


@pytest.mark.parametrize("body", ["KNIE", "ABDOMEN", "LSPINE", "C-SPINE MUELLER", "HALS", "NACKEN"])
def test_other_body_parts_are_no_heads_and_free_text_is_not_repeated(body: str) -> None:
    reason = why_not(_whole(replace(HEADER, body=body)), "T1w")
    assert reason is not None
    assert reason.startswith("not a head")
    assert "MUELLER" not in reason


@pytest.mark.parametrize(("turned", "localizer"), [(0.000001, False), (0.006, False), (0.5, True)])
def test_slices_with_a_jitter_are_one_volume(turned: float, localizer: bool) -> None:
    series = _whole(HEADER)
    series.orientations = {(1, 0, 0, 0, 1, 0), (1 - turned, 0, 0, 0, 1, turned)}
    assert (why_not(series, "T1w") == "not T1w: a localizer") is localizer


def test_an_odd_modality_is_not_repeated() -> None:
    reason = why_not(_whole(replace(HEADER, modality="MUELLER")), "T1w")
    assert reason == "not T1w: modality unknown, expected MR"


def _whole(header: Header) -> Series:
    files = [Path(str(number)) for number in range(40)]
    positions: list[float | None] = [float(number) for number in range(40)]
    return Series(header, files, positions, {header.orientation})
