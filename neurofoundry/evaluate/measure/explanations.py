"""Where in the brain the answers of models come from: maps of finetune, averaged over persons.

A map of a person shares out, among blocks of the standard grid, the difference between what a model
says of the scan and of a flat brain (models/…/explanation.npz). Registration is rigid, and heads
differ: averages are drawn no sharper than ``SMOOTHING_MM``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError
from neurofoundry.evaluate.inputs import Evidence, Model
from neurofoundry.stats.metrics import Values

EXPLANATIONS = [
    *("task", "init", "group", "subjects", "seeds", "answer", "flat", "left_over"),
    *("peak", "x", "y", "z"),
]
SMOOTHING_MM = 12.0
"""Full width at half maximum."""


_AGAIN = "Run finetune again."


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the answers of one initialization for a group of persons come from, mean over seeds."""

    task: str
    init: str
    group: str
    """The label of the persons, or everybody."""
    subjects: int
    seeds: int
    grid: Grid
    mean: Values
    """(x, y, z) on ``grid``, smoothed: what each block adds to the answer."""
    answer: float
    """Mean over the persons, of scans …"""
    flat: float
    """… and of their flat brains: log odds of the class of interest, or value."""
    left_over: float
    """Of the differences, the share that the sums of the maps miss: above 1 where answers hardly
    differ from those of flat brains."""

    @property
    def place(self) -> NDArray[np.float64]:
        """Where the block lies that moves the answer most, mm."""
        index = np.unravel_index(np.abs(self.mean).argmax(), self.mean.shape)
        return np.asarray(apply_affine(self.grid.affine, index))


def read(tasks: Sequence[Evidence], models: Path) -> tuple[Explanation, ...]:
    """Of every model with all labels that finetune has explained, by group of persons.

    Raises DataError when a file is not what finetune writes, or is of other scans.
    """
    found = []
    for evidence in tasks:
        for model in evidence.models:
            if model.is_floor or model.fraction != evidence.fraction:
                continue
            run = models / evidence.name / model.name / str(model.fraction)
            paths = [run / str(seed) / "explanation.npz" for seed in model.seeds]
            if paths and all(path.exists() for path in paths):
                found += _groups(evidence, model, [_read(path, evidence) for path in paths])
    return tuple(found)


def _read(path: Path, evidence: Evidence) -> dict[str, NDArray[Any]]:
    names = ("scan_id", "maps", "spacing", "answer", "flat")
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {name: content[name] for name in names}
        shape = (len(found["scan_id"]), *Grid(spacing=float(found["spacing"])).shape)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: the explanations cannot be read ({error}). {_AGAIN}") from error
    if found["maps"].shape != shape or not shape[0]:
        raise DataError(f"{path}: maps of shape {found['maps'].shape}, expected {shape}. {_AGAIN}")
    if not all(np.isfinite(found[name]).all() for name in names[1:]):
        raise DataError(f"{path}: some of its values are not numbers. {_AGAIN}")
    test = evidence.scans["scan_id"][evidence.scans["split"] == "test"]
    if foreign := sorted(set(found["scan_id"]) - set(test)):
        raise DataError(
            f"{path}: {len(foreign)} scans are not test scans of the task, such as {foreign[0]}. "
            f"{_AGAIN}"
        )
    return found


def _groups(
    evidence: Evidence, model: Model, runs: Sequence[dict[str, NDArray[Any]]]
) -> list[Explanation]:
    scan_ids = [list(run["scan_id"]) for run in runs]
    if any(each != scan_ids[0] for each in scan_ids):
        raise DataError(
            f"{evidence.name}/{model.name}: its seeds have explained different scans. {_AGAIN}"
        )
    grid = Grid(spacing=float(runs[0]["spacing"]))
    maps, answers, flats = (
        np.mean([run[name].astype(np.float64) for run in runs], axis=0)
        for name in ("maps", "answer", "flat")
    )
    targets = pd.Series(evidence.targets, evidence.scans["scan_id"])[scan_ids[0]].to_numpy()
    groups = {"everybody": np.ones(len(targets), bool)}
    if classes := evidence.task.classes:
        # The class of interest, the last, comes first.
        groups = {name: targets == index for index, name in reversed([*enumerate(classes)])}
    found = []
    for name, inside in groups.items():
        if not inside.any():
            continue
        mean = maps[inside].mean(axis=0)
        moved = answers[inside] - flats[inside]
        over = np.abs(moved - maps[inside].sum(axis=(1, 2, 3))).sum()
        found.append(
            Explanation(
                task=evidence.name,
                init=model.name,
                group=name,
                subjects=int(inside.sum()),
                seeds=len(runs),
                grid=grid,
                mean=smooth(mean, grid),
                answer=float(answers[inside].mean()),
                flat=float(flats[inside].mean()),
                left_over=float(over / np.abs(moved).sum()) if moved.any() else 0.0,
            )
        )
    return found


def smooth(values: Values, grid: Grid) -> Values:
    """Blurred to ``SMOOTHING_MM``, mirrored at the faces of the box, so that the sum stays."""
    width = SMOOTHING_MM / np.sqrt(8 * np.log(2)) / grid.spacing
    return np.asarray(ndimage.gaussian_filter(values, width, mode="reflect"))


def table(found: Sequence[Explanation]) -> pd.DataFrame:
    """EXPLANATIONS: a row a task, initialization and group."""
    rows = [
        {
            **{name: getattr(each, name) for name in EXPLANATIONS[:8]},
            "peak": float(each.mean.flat[np.abs(each.mean).argmax()]),
            **dict(zip("xyz", each.place, strict=True)),
        }
        for each in found
    ]
    return pd.DataFrame(rows, columns=EXPLANATIONS)


def write(folder: Path, found: Sequence[Explanation]) -> None:
    """Write FOLDER/TASK/INIT/N.nii.gz, N counting the groups in the order of the table, from 1."""
    counted: dict[tuple[str, str], int] = {}
    for each in found:
        number = counted[each.task, each.init] = counted.get((each.task, each.init), 0) + 1
        place = folder / each.task / each.init
        place.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(each.mean.astype(np.float32), each.grid.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(each.grid.affine, code="mni")
        image.set_qform(each.grid.affine, code="mni")
        image.header["descrip"] = f"{each.group}: {each.subjects} subjects"[:79].encode()
        nib.save(image, place / f"{number}.nii.gz")
