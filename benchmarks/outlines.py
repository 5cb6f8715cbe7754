"""Does pretraining help to outline? Dice with 20 and with all labelled persons.

    python benchmarks/outlines.py FOLDER [--toy]

FOLDER is that of `python benchmarks/learning.py FOLDER --study first`: its cohort and two of its
encoders of seed 1 are made first where they are missing (8 minutes of one core). Of its labelled
persons with an infarct, one scan each, infarct and ventricles are outlined as they were painted.
All initializations have the same decoder, steps and learning rate; infarcts of 20 persons are
learned three times, each from other persons and with another decoder. Every model is kept in
FOLDER/outlines: the same command continues, and ends with FOLDER/outlines/report.md. 12 minutes of
one core. --toy is the same in a minute, and says nothing.
"""

from __future__ import annotations

import argparse
import itertools
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
from neurofoundry.evaluate.measure.outlines import Outlines
from neurofoundry.evaluate.rows import find_row
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.run import finetune
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.scanner import SITES, head_on_grid
from neurofoundry.runtime.files import hash_file, write_text
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Segmentation

TASKS = {
    name: Segmentation.model_validate(
        {
            **{"kind": "segmentation", "column": name, "classes": [name]},
            "label": {"suffix": "mask", "label": name},
        }
    )
    for name in ("infarct", "ventricle")
}
"""By what a head calls the voxels of each."""

ARMS = ("mae", "simclr-mm")
"""The encoders of the learning study that speak for the two methods of pretraining."""

TUNED = {
    "scratch": {"encoder": "random", "mode": "finetune"},
    **{arm: {"encoder": arm, "mode": "finetune"} for arm in ARMS},
}
FROZEN = {
    "untrained-frozen": {"encoder": "random", "mode": "probe"},
    **{f"{arm}-frozen": {"encoder": arm, "mode": "probe"} for arm in ARMS},
}

SETS = {
    "infarct-20": ("infarct", 20, TUNED, (0, 1, 2)),
    "ventricle-20": ("ventricle", 20, TUNED | FROZEN, (0,)),
    "infarct-all": ("infarct", None, TUNED | FROZEN, (0,)),
}
"""A task, the persons to learn from, what models start from, and the seeds: each draws its own
persons, decoder and order."""

TUNING = {"epochs": 8, "batch_size": 8, "learning_rate": 8e-3, "augmentation": "none"}
"""Of 2e-3 and 8e-3 validation chose the larger for each of six models that tried both."""

SHOWN = ("dice", "hd95_mm", "volume_error_ml", "lesion_f1")


def outline(folder: Path, painted: Path, design: Design) -> None:
    """Write the volumes of labelled persons with an infarct, and what was painted of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    table = read_table(painted / "scans.tsv", VOLUMES).set_index("scan_id", drop=False)
    atlas = build_atlas(2)
    rows, scan_ids = [], []
    for split, subject in persons(design.phantoms, design.counts):
        if split != "pretrain" and subject.infarct:
            site = SITES[subject.site_of("1")]
            head = head_on_grid(subject, "1", site, atlas, GRID.affine, GRID.shape)
            if head.infarct.any():
                scan_ids.append(scan_id := f"{subject.participant}_ses-1")
                rows += [_label(folder, scan_id, task, getattr(head, task)) for task in TASKS]
    write_table(pd.DataFrame(rows, columns=list(CARRIED.columns)), folder / TABLE, CARRIED)
    scans = table.loc[scan_ids].assign(**{task: task for task in TASKS})
    for name in scans["volume"]:
        shutil.copyfile(painted / name, folder / name)
    shutil.copyfile(painted / "grid.json", folder / "grid.json")
    write_table(scans, folder / "scans.tsv", VOLUMES)


def _label(folder: Path, scan_id: str, task: str, mask: NDArray[np.bool_]) -> tuple[Any, ...]:
    """Write a label image; return its row of labels.tsv."""
    path = folder / FILE.format(scan_id=scan_id, task=task)
    write_classes(path, mask.astype(np.uint8), GRID.affine)
    sha256, voxel_ml = hash_file(path), GRID.spacing**3 / 1000
    ml = mask.sum() * voxel_ml
    about = (task, scan_id, f"{scan_id}_label-{task}_mask.nii.gz", sha256, "1", task, ml)
    return (*about, sha256, ml, voxel_ml, None)


def learn(models: Path, volumes: Path, encoders: list[Path], *, toy: bool) -> None:
    """Make every model that is not there yet."""
    scans = Volumes(volumes).usable
    everybody = scans[scans["split"] == "train"]["person"].nunique()
    for name, (task, count, starts, seeds) in SETS.items():
        values = {
            **{**TUNING, **({"epochs": 1} if toy else {})},
            **{"initializations": starts, "seeds": seeds[:1] if toy else seeds},
            "fractions": [1.0 if toy or count is None else count / everybody],
        }
        (models / name).mkdir(parents=True, exist_ok=True)
        finetune(
            Workspace(models / name),
            volumes=volumes,
            encoder=encoders,
            params=FinetuneParams.model_validate(values),
            tasks={task: TASKS[task]},
            seed=0,
        )


def report(volumes: Path, models: Path) -> str:
    """Return a table of what was measured of each set."""
    parts = []
    for name, (task, *_) in SETS.items():
        runs = read_table(models / name / "runs.tsv", RUNS)
        of_seeds = [rows for _, rows in runs.groupby("seed")]
        apart = [_measured(task, rows, volumes, models / name) for rows in of_seeds]
        whole = apart[0] if len(apart) == 1 else _measured(task, runs, volumes, models / name)
        parts.append(f"{name}\n\n{_table(whole, apart)}")
    return "\n\n".join(parts)


def _measured(task: str, runs: pd.DataFrame, volumes: Path, models: Path) -> Outlines:
    return outlines.measure(
        {task: TASKS[task]},
        runs,
        Volumes(volumes),
        models,
        reference="scratch",
        fewest=2,
        fewest_in_group=20,
    )


def _table(whole: Outlines, apart: list[Outlines]) -> str:
    """Return estimates with their intervals, a row a split and initialization."""
    lines = [["split", "init", *SHOWN, "Dice more than scratch", "of each seed"]]
    lines.append(["---"] * len(lines[0]))
    for split, init in itertools.product(("test", "ood"), dict.fromkeys(whole.measures["init"])):
        where = {"split": split, "init": init}
        shown = [_estimate(whole.measures, metric=metric, **where) for metric in SHOWN]
        more = [_estimate(each.differences, metric="dice", **where) for each in (whole, *apart)]
        seeds = ", ".join(each.partition(" ")[0] for each in more[1:])
        lines.append([split, init, *shown, more[0], seeds])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _estimate(table: pd.DataFrame, **where: str) -> str:
    """Return a value with its interval; nothing where there is none."""
    row = find_row(table, **where)
    if row is None or row["low"] is None:
        return ""
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**row)


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
