"""Heads whose dark ventricle is outlined, and models that outline it perfectly or one voxel off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from neurofoundry.contracts.labels import CARRIED, FILE, open_classes, write_classes
from neurofoundry.contracts.masks import pack, write_masks
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate.measure import outlines
from neurofoundry.evaluate.measure.outlines import Outlines
from neurofoundry.runtime.files import hash_file
from neurofoundry.tasks import Segmentation
from tests.support import tiny
from tests.support.tiny import GRID

TASK = Segmentation.model_validate(
    {"kind": "segmentation", "column": "hole", "classes": ["hole"], "label": {"suffix": "mask"}}
)
OFF = {"shifted": 1, "perfect": 0}
"""By how many voxels the models of an initialization miss."""
TOGETHER = {"shifted": 2, "perfect": 1}
"""By how many their models as one do."""


def write_volumes(
    folder: Path, persons: int, *, looked_at: Callable[[int], bool] = lambda _: True
) -> Path:
    """Write volumes with a label image of each scan that somebody has ``looked_at``."""
    scans = tiny.scans_table(persons)
    tiny.write_volumes(folder, scans)
    middle = ((np.array(GRID.shape) - 1) / 2)[:, None, None, None]
    radius = np.sqrt((((np.indices(GRID.shape) - middle) / middle) ** 2).sum(0)) / 0.8
    rows = []
    for number, scan in enumerate(scans.itertuples()):
        if looked_at(number):
            classes = (radius < (0.5 if scan.diagnosis == "AD" else 0.35)).astype(np.uint8)
            path = folder / FILE.format(scan_id=scan.scan_id, task="hole")
            write_classes(path, classes, GRID.affine)
            ml = classes.sum() * 0.1
            row = ("hole", scan.scan_id, "a.nii", "0" * 64, "1", "hole", ml, hash_file(path), ml)
            rows.append((*row, 0.1, None))
    labels = pd.DataFrame(rows, columns=list(CARRIED.columns))
    write_table(labels, folder / "labels.tsv", CARRIED)
    shows = np.where(scans["scan_id"].isin(labels["scan_id"]), "hole", None)
    return tiny.with_scans(folder, scans.assign(hole=shows))


def write_models(models: Path, volumes: Path) -> Path:
    """Write what models of both initializations, and what several of each as one, outline."""
    scans = Volumes(volumes).scans
    held_out = scans[scans["split"].isin(["val", "test", "ood"])].assign(label="hole")
    truth = {
        scan_id: open_classes(volumes / FILE.format(scan_id=scan_id, task="hole"), GRID)
        for scan_id in held_out["scan_id"]
    }
    for init in OFF:
        group = models / "hole" / init / "1.0"
        for folder, steps in ((group / "0", OFF[init]), (group, TOGETHER[init])):
            folder.mkdir(parents=True, exist_ok=True)
            masks = {name: pack(np.roll(each, steps, axis=0), 1) for name, each in truth.items()}
            write_masks(folder / "masks.npz", masks)
            write_table(held_out, folder / "predictions.tsv")
        losses = pd.DataFrame({"epoch": [1, 2], "val_loss": [0.9, 0.2 + 0.1 * OFF[init]]})
        write_table(losses, group / "0" / "history.tsv")
    return models


def measure(volumes: Path, models: Path, inits: tuple[str, ...] = tuple(OFF)) -> Outlines:
    """Measure the models of these initializations against those that miss by a voxel."""
    runs = pd.DataFrame(
        [("hole", init, 1.0, 0, "done") for init in inits],
        columns=["task", "init", "fraction", "seed", "status"],
    )
    return outlines.measure(
        {"hole": TASK},
        runs,
        Volumes(volumes),
        models,
        reference="shifted",
        fewest=3,
        fewest_in_group=5,
    )
