"""Where in the brain the answers of models come from: maps of finetune, averaged over persons.

A map of a person distributes over the blocks of the standard grid the difference between a model's
answer for the scan and for a flat brain (models/…/explanation.npz). Registration is rigid, and
heads differ: averages are drawn no sharper than ``SMOOTHING_MM``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts.models import run_folder
from neurofoundry.contracts.volumes import Grid
from neurofoundry.errors import DataError
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.runtime.arrays import open_arrays
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
    """Where the answers of one initialization for a group of persons come from, mean over seeds."""

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
    """Mean answer for their scans, log odds of the class of interest or value …"""
    flat: float
    """… and for flat brains of the same outline."""
    left_over: float
    """Share of the differences that the sums of the maps miss: above 1 where answers hardly differ
    from those for flat brains."""

    @property
    def peak_mm(self) -> NDArray[np.float64]:
        """MNI coordinates (mm) of the block that moves the answer most."""
        index = np.unravel_index(np.abs(self.mean).argmax(), self.mean.shape)
        return np.asarray(apply_affine(self.grid.affine, index))


def read(tasks: Sequence[Evidence], models: Path) -> tuple[Explanation, ...]:
    """Read what finetune has explained of every model with all labels, by group of persons.

    Raises DataError when a file is not what finetune writes, or is of other scans.
    """
    explained: list[Explanation] = []
    for evidence in tasks:
        for model in evidence.trained:
            runs = [_paths(evidence, model, seed, models) for seed in dict.fromkeys(model.seeds)]
            if runs and all(path.exists() for paths in runs for path in paths):
                read_runs = [[_read(path, evidence) for path in paths] for paths in runs]
                explained += _groups(evidence, model, [*map(_join, read_runs)])
    return tuple(explained)


def _paths(evidence: Evidence, model: Model, seed: int, models: Path) -> list[Path]:
    """Return the files of a seed: one, or one for each fold of the first repeat."""
    return [
        models
        / run_folder(evidence.name, model.name, model.fraction, seed, fold)
        / "explanation.npz"
        for fold, _ in evidence.by_fold(0)
    ]


def _join(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the explanations of several folds as one."""
    scans = ("scan_id", "maps", "answer", "flat")
    joined = {name: np.concatenate([part[name] for part in parts]) for name in scans}
    return joined | {"spacing": parts[0]["spacing"]}


def _read(path: Path, evidence: Evidence) -> dict[str, NDArray[Any]]:
    names = ("scan_id", "maps", "spacing", "answer", "flat")
    try:
        with open_arrays(path) as content:
            run = {name: content[name] for name in names}
        shape = (len(run["scan_id"]), *Grid(spacing=float(run["spacing"])).shape)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the explanations cannot be read ({error}). {_AGAIN}") from error
    if run["maps"].shape != shape or not shape[0]:
        raise DataError(f"{path}: maps of shape {run['maps'].shape}, expected {shape}. {_AGAIN}")
    if not all(np.isfinite(run[name]).all() for name in names[1:]):
        raise DataError(f"{path}: some of its values are not numbers. {_AGAIN}")
    test = evidence.scans["scan_id"][evidence.inside("test")]
    if foreign := sorted(set(run["scan_id"]) - set(test)):
        raise DataError(
            f"{path}: {len(foreign)} scans are not test scans of the task, such as {foreign[0]}. "
            f"{_AGAIN}"
        )
    return run


def _groups(
    evidence: Evidence, model: Model, runs: Sequence[dict[str, NDArray[Any]]]
) -> Iterator[Explanation]:
    """Yield the explanation of each class, the one of interest first; of a regression, of all."""
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
    test = evidence.inside("test")
    by_scan = pd.Series(evidence.targets[test], evidence.scans["scan_id"][test])
    targets = by_scan[scan_ids[0]].to_numpy()
    classes = reversed([*enumerate(evidence.task.classes)])
    groups = {name: targets == index for index, name in classes}
    for name, inside in (groups or {"everybody": np.ones(len(targets), bool)}).items():
        if not inside.any():
            continue
        moved = answers[inside] - flats[inside]
        missed = np.abs(moved - maps[inside].sum(axis=(1, 2, 3))).sum()
        yield Explanation(
            task=evidence.name,
            init=model.name,
            group=name,
            subjects=int(inside.sum()),
            seeds=len(runs),
            grid=grid,
            mean=smooth(maps[inside].mean(axis=0), grid),
            answer=float(answers[inside].mean()),
            flat=float(flats[inside].mean()),
            left_over=float(missed / np.abs(moved).sum()) if moved.any() else 0.0,
        )


def smooth(values: Values, grid: Grid) -> Values:
    """Blur a map to ``SMOOTHING_MM``, mirrored at the faces of the box, so that the sum stays."""
    width = SMOOTHING_MM / np.sqrt(8 * np.log(2)) / grid.spacing
    return np.asarray(ndimage.gaussian_filter(values, width, mode="reflect"))


def table(explained: Sequence[Explanation]) -> pd.DataFrame:
    """EXPLANATIONS: a row a task, initialization and group; x, y, z (mm) are those of the peak."""
    rows = [
        {
            **{name: getattr(each, name) for name in EXPLANATIONS[:8]},
            "peak": float(each.mean.flat[np.abs(each.mean).argmax()]),
            **dict(zip("xyz", each.peak_mm, strict=True)),
        }
        for each in explained
    ]
    return pd.DataFrame(rows, columns=EXPLANATIONS)


def write(folder: Path, explained: Sequence[Explanation]) -> None:
    """Write FOLDER/TASK/INIT/N.nii.gz, N counting the groups in the order of the table, from 1."""
    counted: dict[tuple[str, str], int] = {}
    for each in explained:
        number = counted[each.task, each.init] = counted.get((each.task, each.init), 0) + 1
        target = folder / each.task / each.init
        target.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(each.mean.astype(np.float32), each.grid.affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(each.grid.affine, code="mni")
        image.set_qform(each.grid.affine, code="mni")
        image.header["descrip"] = f"{each.group}: {each.subjects} subjects"[:79].encode()
        nib.save(image, target / f"{number}.nii.gz")
