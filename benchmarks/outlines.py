"""Does pretraining help to outline infarcts? Dice with 20 and with all labelled persons.

    python benchmarks/outlines.py FOLDER [--toy]

FOLDER is that of `python benchmarks/learning.py FOLDER --study first`: its cohort and two of its
encoders of seed 1 are made first where they are missing (8 minutes of one core). Its labelled
persons with an infarct are outlined as they were painted, one scan each. All initializations have
the same decoder, steps and learning rates, of which validation chooses. Every model is kept in
FOLDER/outlines: the same command continues, and ends with FOLDER/outlines/report.md. 20 minutes of
one core. --toy is the same in a minute, and says nothing.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from learning import FIRST, TOY, Design, advance, steps
from learning_study.cohort import GRID, persons
from numpy.typing import NDArray

from neurofoundry.contracts.labels import CARRIED, FILE, TABLE, write_classes
from neurofoundry.contracts.models import RUNS
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, Volumes
from neurofoundry.evaluate.measure import outlines
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.run import finetune
from neurofoundry.phantom.anatomy import Subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.scanner import SITES, head_on_grid
from neurofoundry.runtime.files import hash_file, write_text
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Segmentation

TASK = Segmentation.model_validate(
    {
        **{"kind": "segmentation", "column": "infarct", "classes": ["infarct"]},
        "label": {"suffix": "mask", "label": "infarct"},
    }
)

ARMS = ("mae", "simclr-mm")
"""The encoders of the learning study that speak for the two methods of pretraining."""

STARTS = {
    "scratch": {"encoder": "random", "mode": "finetune"},
    **{arm: {"encoder": arm, "mode": "finetune"} for arm in ARMS},
    "untrained-frozen": {"encoder": "random", "mode": "probe"},
    **{f"{arm}-frozen": {"encoder": arm, "mode": "probe"} for arm in ARMS},
}

FEW = 20
"""Labelled persons of the smaller training set; the larger has all there are."""

TUNING = {
    **{"epochs": 8, "batch_size": 8, "learning_rate": [2e-3, 8e-3], "augmentation": "none"},
    "seeds": [0],
}

SHOWN = ("dice", "hd95_mm", "volume_error_ml", "lesion_f1", "sensitivity_small")


def outline(folder: Path, painted: Path, design: Design) -> None:
    """Write the volumes of labelled persons with an infarct, and what was painted of it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = read_table(painted / "scans.tsv", VOLUMES).set_index("scan_id", drop=False)
    atlas = build_atlas(2)
    rows = []
    for split, subject in persons(design.phantoms, design.counts):
        if split != "pretrain" and subject.infarct:
            site = SITES[subject.site_of("1")]
            infarct = head_on_grid(subject, "1", site, atlas, GRID.affine, GRID.shape).infarct
            if infarct.any():
                rows.append(_label(folder, subject, infarct))
    write_table(pd.DataFrame(rows, columns=list(CARRIED.columns)), folder / TABLE, CARRIED)
    scans = table.loc[[row[1] for row in rows]].assign(infarct="infarct")
    for name in scans["volume"]:
        shutil.copyfile(painted / name, folder / name)
    shutil.copyfile(painted / "grid.json", folder / "grid.json")
    write_table(scans, folder / "scans.tsv", VOLUMES)


def _label(folder: Path, subject: Subject, infarct: NDArray[np.bool_]) -> tuple[Any, ...]:
    """Write a label image; return its row of labels.tsv."""
    scan_id = f"{subject.participant}_ses-1"
    path = folder / FILE.format(scan_id=scan_id, task="infarct")
    write_classes(path, infarct.astype(np.uint8), GRID.affine)
    sha256, voxel_ml = hash_file(path), GRID.spacing**3 / 1000
    ml = infarct.sum() * voxel_ml
    about = ("infarct", scan_id, f"{scan_id}_label-infarct_mask.nii.gz", sha256, "1", "infarct", ml)
    return (*about, sha256, ml, voxel_ml, None)


def learn(folder: Path, volumes: Path, encoders: list[Path], *, toy: bool) -> None:
    """Make every model that is not there yet."""
    scans = Volumes(volumes).usable
    everybody = scans[scans["split"] == "train"]["person"].nunique()
    few = {} if toy else {"fractions": [FEW / everybody, 1.0]}
    values = {**TUNING, **few, **({"epochs": 1} if toy else {})}
    finetune(
        Workspace(folder),
        volumes=volumes,
        encoder=encoders,
        params=FinetuneParams.model_validate({**values, "initializations": STARTS}),
        tasks={"infarct": TASK},
        seed=0,
    )


def report(volumes: Path, models: Path) -> str:
    """Return tables of what was measured, and of the differences from scratch."""
    runs = read_table(models / "runs.tsv", RUNS)
    measured = outlines.measure(
        {"infarct": TASK}, runs, Volumes(volumes), models, reference="scratch", fewest=2
    )
    return "\n\n".join(
        f"{title}\n\n{_table(table)}"
        for title, table in (
            ("Measures", measured.measures),
            ("Differences from scratch, of the same scans", measured.differences),
        )
    )


def _table(table: pd.DataFrame) -> str:
    """Return estimates with their intervals, a row an initialization, split and share of labels."""
    shown = table[table["metric"].isin(SHOWN)]
    text = [
        f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})" if pd.notna(row.value) else row.reason
        for row in shown.itertuples()
    ]
    labelled = ["few" if fraction < 1 else "all" for fraction in shown["fraction"]]
    cells = shown.assign(text=text, labelled=labelled)
    wide = cells.pivot(index=["labelled", "split", "init"], columns="metric", values="text")
    lines = [["labelled", "split", "init", *SHOWN], ["---"] * (3 + len(SHOWN))]
    lines += [[*key, *wide.loc[key, list(SHOWN)]] for key in wide.index]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Make what is missing, and report it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    design, root = TOY if given.toy else FIRST, given.folder
    encoders = [root / "encoder/1" / arm for arm in ARMS]
    wanted = {root / "cohort", *encoders}
    for step in steps(root, design, (1,)):
        if step.folder in wanted and not advance(step):
            raise SystemExit(f"{step.folder}: another process makes it. Run this again later.")
    volumes, models = root / "outlines/volumes", root / "outlines/models"
    if not (volumes / "scans.tsv").exists():
        outline(volumes, root / "cohort", design)
    started = time.process_time()
    learn(models, volumes, encoders, toy=given.toy)
    text = report(volumes, models)
    minutes = (time.process_time() - started) / 60
    write_text(root / "outlines/report.md", f"{text}\n\n{minutes:.1f} CPU minutes, this time.\n")
    print(text)


if __name__ == "__main__":
    main()
