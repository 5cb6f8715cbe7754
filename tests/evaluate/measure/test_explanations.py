"""Maps of finetune, averaged over persons and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine

from neurofoundry.errors import DataError
from neurofoundry.evaluate.measure import explanations
from neurofoundry.evaluate.measure.explanations import SMOOTHING_MM, smooth
from neurofoundry.evaluate.report import plots
from neurofoundry.runtime.stage import Workspace
from tests.evaluate.conftest import GRID, TASKS, Folders, run, scans_table, write_inputs
from tests.support.page import Page

PLACE = np.array([33.5, -26.5, -5.5])
"""Where the planted maps are warm, mm; the middle of a block."""
SOME = {name: TASKS[name] for name in ("sex", "age")}
SKILL = {"simclr": (2.4, 1.6), "scratch": (0.4, 0.4), "blind": (0.0, 0.0)}


def explain(folders: Folders, task: str, init: str, seed: int, **change: Any) -> dict[str, Any]:
    """Write the explanation of a model: of two thirds of the difference, at PLACE in ill and old
    and with the other sign in the rest, the size growing with the seed."""
    path = folders.predictions(task, init, seed=seed)
    predictions = (
        pd.read_csv(path, sep="\t").query("split == 'test'").drop_duplicates("person")[:12]
    )
    sign = np.where(predictions["label"].isin(["M", "AD"]) | (task == "age"), 1.0, -1.0)
    maps = np.zeros((len(predictions), *GRID.shape))
    index = np.rint(apply_affine(np.linalg.inv(GRID.affine), PLACE)).astype(int)
    maps[:, *index] = sign * (1 + seed)
    content = {
        "scan_id": predictions["scan_id"].to_numpy(str),
        "maps": maps.astype(np.float32),
        "spacing": np.array(6.0),
        "answer": 1.5 * sign * (1 + seed) + 0.5,
        "flat": np.full(len(predictions), 0.5),
        **change,
    }
    np.savez(path.with_name("explanation.npz"), **content)
    return content


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folders = write_inputs(
        tmp_path_factory.mktemp("explained") / "in",
        scans_table(120),
        tasks=SOME,
        skill=SKILL,
        seeds=(0, 1),
    )
    for task in SOME:
        for init in ("simclr", "blind"):
            for seed in (0, 1):
                explain(folders, task, init, seed)
    record = json.loads((folders.root / "models/stage.json").read_text())
    record["params"]["finetune"]["explain"] = {"steps": 8, "scans": 12}
    (folders.root / "models/stage.json").write_text(json.dumps(record))
    return folders


@pytest.fixture(scope="module")
def out(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(folders, tmp_path_factory.mktemp("explained") / "out", tasks=SOME).dir


def test_the_table_says_for_each_group_where_and_how_much(folders: Folders, out: Path) -> None:
    table = pd.read_csv(out / "tables/explanations.tsv", sep="\t")
    assert table[["task", "init", "group"]].agg("/".join, axis=1).to_list() == [
        *("sex/simclr/M", "sex/simclr/F", "sex/blind/M", "sex/blind/F"),
        *("age/simclr/everybody", "age/blind/everybody"),
    ]
    assert (table[["x", "y", "z"]] == PLACE).all(axis=None)
    rows = table.set_index(["task", "init", "group"])
    assert rows.loc[("age", "simclr", "everybody"), "subjects"] == 12
    assert table.query("task == 'sex' and init == 'simclr'")["subjects"].sum() == 12
    assert rows.loc[("sex", "simclr", "M"), "peak"] > 0
    assert rows.loc[("sex", "simclr", "F"), "peak"] == -rows.loc[("sex", "simclr", "M"), "peak"]
    # Mean of the two seeds, which say 1.5 and 3 for M.
    assert rows.loc[("sex", "simclr", "M"), ["answer", "flat"]].to_list() == pytest.approx(
        [0.5 + 2.25, 0.5]
    )
    np.testing.assert_allclose(table["left_over"], 1 / 3)


def test_maps_are_means_over_seeds_and_persons_blurred_and_lie_in_mni_space(out: Path) -> None:
    image = nib.load(out / "explanations/sex/simclr/1.nii.gz")
    assert np.allclose(image.affine, GRID.affine)
    assert image.header["sform_code"] == 4
    mean = np.asarray(image.dataobj)
    assert mean.sum() == pytest.approx(1.5, rel=1e-5)
    peak = np.unravel_index(mean.argmax(), mean.shape)
    assert apply_affine(image.affine, peak).tolist() == PLACE.tolist()
    # Half a width away the map has half its height.
    along = np.interp(
        PLACE[0] + SMOOTHING_MM / 2, GRID.affine[0, 3] + 6 * np.arange(32), mean[:, *peak[1:]]
    )
    assert along == pytest.approx(mean.max() / 2, rel=0.02)
    assert np.asarray(nib.load(out / "explanations/sex/simclr/2.nii.gz").dataobj).sum() < 0
    assert not (out / "explanations/sex/scratch").exists()


def test_blurring_keeps_the_sum_and_is_a_gaussian() -> None:
    values = np.random.default_rng(0).normal(size=GRID.shape)
    assert smooth(values, GRID).sum() == pytest.approx(values.sum())
    point = np.zeros(GRID.shape)
    point[16, 16, 12] = 1
    sigma = SMOOTHING_MM / 2.3548 / 6
    weights = [np.exp(-(k**2) / 2 / sigma**2) for k in range(-4, 5)]
    naive = 1 / sum(weights) ** 3 * np.exp(-(1**2 + 2**2) / 2 / sigma**2)
    assert smooth(point, GRID)[17, 14, 12] == pytest.approx(naive, rel=1e-3)


def test_the_report_shows_them_with_what_they_do_not_mean(out: Path) -> None:
    page = Page(out / "report.html")
    assert page.open == []
    assert "simclr: sex M, mean of" in page.words
    assert "age, years" in page.words
    assert "33 % of the differences are unexplained" in page.words
    # blind knows nothing, and its maps are not to be believed.
    doubt = "This model is not shown to beat the same answer for everybody"
    for init, text in zip(
        ("simclr", "blind"),
        page.words.split("Where in the brain the predictions of")[1:3],
        strict=True,
    ):
        assert (doubt in text) == (init == "blind")
    assert "Where in the brain the predictions of scratch come from" not in page.words


def test_the_checklist_says_what_was_explained_and_what_to_think_of_it(
    out: Path, folders: Folders
) -> None:
    text = (out / "checklist.md").read_text()
    item = next(line for line in text.splitlines() if line.startswith("- **31 Explanations.**"))
    assert "(steps 8, scans 12)" in item
    table = pd.read_csv(out / "tables/explanations.tsv", sep="\t")
    men = table.query("task == 'sex' and init == 'simclr' and group == 'M'").iloc[0]
    assert f"sex, simclr: M {men['subjects']} subjects, most at 34, -26, -6 mm" in item
    assert item.count("33 % of the differences unexplained") == 4
    sex, age = item.split("age, simclr")
    for task in (sex, age):
        simclr, blind = task.split("blind:")
        assert "mean nothing" in blind
        assert "mean nothing" not in simclr
    assert "Left to the author" in item
    assert "CLAIM 31" in text


def test_without_explanations_the_checklist_says_so(evaluated: Workspace) -> None:
    text = (evaluated.dir / "checklist.md").read_text()
    assert "- **31 Explanations.** No model was explained (`finetune.explain`)." in text


def test_a_place_that_moves_the_answer_is_warm_in_the_picture() -> None:
    explanation = explanations.Explanation(
        *("sex", "simclr", "M", 1, 1, GRID, np.zeros(GRID.shape), 0.0, 0.0, 0.0)
    )
    index = tuple(np.rint(apply_affine(np.linalg.inv(GRID.affine), PLACE)).astype(int))
    explanation.mean[index] = 1.0
    panel = plots.plane(explanation, 1.0, 2, PLACE[2])
    red, _, blue = np.moveaxis(panel, -1, 0)
    rows, columns = np.nonzero(red > blue + 0.5)
    # Pixels of 2 mm, from the left and from the top of the box.
    assert -95.5 + 2 * columns.mean() + 1 == pytest.approx(PLACE[0], abs=1.5)
    assert 78.5 - 2 * rows.mean() - 1 == pytest.approx(PLACE[1], abs=1.5)
    assert np.allclose(*(plots.plane(explanation, 1.0, 2, 60.0)[..., k] for k in (0, 2)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"maps": np.zeros((12, 3, 3, 3))}, "maps of shape"),
        ({"answer": np.full(12, np.nan)}, "not numbers"),
        ({"scan_id": np.array(["nobody"] * 12)}, "not test scans of the task, such as nobody"),
        ({"spacing": np.array(7.0)}, "cannot be read"),
    ],
)
def test_what_finetune_has_not_written_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    tasks = {"sex": TASKS["sex"]}
    folders = write_inputs(tmp_path / "in", scans_table(80), tasks=tasks, skill={"scratch": (1, 1)})
    explain(folders, "sex", "scratch", 0, **change)
    with pytest.raises(DataError, match=words) as error:
        run(folders, tmp_path / "out", tasks=tasks)
    assert "explanation.npz" in str(error.value)
    assert "Run finetune again" in str(error.value)
