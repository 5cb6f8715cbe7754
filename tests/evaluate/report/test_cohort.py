"""Who was studied, as the report says it."""

from __future__ import annotations

from base64 import b64decode

import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neurofoundry.evaluate.report.cohort import embed
from tests.evaluate.conftest import run, scans_table, write_inputs
from tests.support.page import Page


def test_pictures_carry_their_pixels_alone(usual, tmp_path):
    path = tmp_path / "scan.png"
    info = PngInfo()
    info.add_text("Comment", "sub-0001")
    Image.new("L", (8, 8), 40).save(path, pnginfo=info)
    assert b"sub-0001" in path.read_bytes()
    data = b64decode(embed(path, width=100).split(",")[1])
    assert b"sub-0001" not in data
    assert data.startswith(b"\x89PNG")


def test_it_tells_where_every_scan_went(usual, page):
    volumes = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    usable = volumes[volumes["usable"]]
    failed = len(volumes) - len(usable)
    for text in (
        f"{len(volumes) + 3} files examined",
        "3 not used: cut short: 2 a copy of …: 1",
        f"{len(volumes)} scans of {volumes['person'].nunique()} subjects",
        f"{failed} failed quality control: overlap with the template: {failed}",
        f"{len(usable)} usable scans of {usable['person'].nunique()} subjects",
    ):
        assert text in page.words.replace(" : ", ": ")


def test_the_split_table_counts_persons_once(usual, page):
    scans = pd.read_csv(usual.root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    test = scans[scans["usable"] & (scans["split"] == "test")]
    first = test.sort_values("age").drop_duplicates("person")
    row = [
        "Test, familiar sites",
        str(len(first)),
        str(len(test)),
        "3",
        f"{first['age'].mean():.1f} ± {first['age'].std(ddof=0):.1f}",
        f"{100 * (first['sex'] == 'F').mean():.0f} %",
    ]
    assert " ".join(row) in page.words


def test_weights_from_elsewhere_leave_leakage_unknown(tmp_path):
    folders = write_inputs(tmp_path / "in", scans_table(40), tasks={}, skill={})
    for name in ("subjects.tsv", "history.tsv"):
        (tmp_path / "in/encoder" / name).unlink()
    run(folders, tmp_path / "out", tasks={})
    page = Page(tmp_path / "out/report.html")
    assert page.open == []
    assert (
        "Unknown for simclr: these weights came without a list of their pretraining subjects"
        in page.words
    )
    assert "on unknown subjects (weights from elsewhere)" in page.words
    card = (tmp_path / "out/model_card.md").read_text()
    assert (
        "Unknown for simclr: these weights came without a list of their pretraining subjects"
        in card
    )
    assert "None subjects" not in card + page.words


def test_encoders_of_ones_own_have_no_unknown(page, evaluated):
    assert "Unknown for" not in page.words
    assert "Unknown for" not in (evaluated.dir / "model_card.md").read_text()
