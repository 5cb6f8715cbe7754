"""The predictions for a task, kept with the evaluation so that two can be compared in pairs.

A scan is identified by a hash of the hash of its image, and a person by a number that is valid in
this file only: who has the same images finds the same scans, and nobody else finds a name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from neurofoundry.errors import DataError
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.runtime.arrays import open_arrays
from neurofoundry.tasks import Task


def write(folder: Path, evidence: Evidence) -> None:
    """Write FOLDER/TASK.npz: all held-out scans of the task, in the order of their hashes.

    Arrays: ``scan``, ``person`` (a number), ``split``, ``target`` (index of the class, or value),
    each (scans,); in a cross-validation ``made_by`` (repeats, scans), the fold whose model has made
    the output; ``init``, ``fraction``, ``reason`` (why there is no output) and ``members`` (trained
    models behind an output), each (models,); and of the model at place K ``seeds_K`` (seeds,) and
    ``outputs_K``, (seeds, scans, classes) probabilities or (seeds, scans) values.
    """
    scan = np.array([hash_scan(sha256) for sha256 in evidence.scans["sha256"]], "U64")
    order = np.argsort(scan, kind="stable")
    # Numbered in the order of their names, so that resampling draws whom the evaluation drew.
    _, person = np.unique(evidence.scans["person"].to_numpy(str), return_inverse=True)
    models = evidence.models
    content = {
        "scan": scan[order],
        "person": person[order],
        "split": evidence.scans["split"].to_numpy(str)[order],
        "target": evidence.targets[order],
        "init": np.array([model.name for model in models], str),
        "fraction": np.array([model.fraction for model in models], float),
        "reason": np.array([model.reason for model in models], str),
        "members": np.array([model.members for model in models], int),
    }
    if evidence.fold_of is not None:
        content["made_by"] = evidence.fold_of[:, order]
    for place, model in enumerate(models):
        content[f"seeds_{place}"] = np.array(model.seeds, int)
        content[f"outputs_{place}"] = model.outputs[:, order] if model.seeds else model.outputs
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{evidence.name}.npz", **content)  # type: ignore[arg-type]


def read(folder: Path, name: str, task: Task) -> Evidence:
    """Read what ``write`` wrote; ``scans`` has the columns scan, person and split.

    Raises DataError.
    """
    path = folder / f"{name}.npz"
    try:
        with open_arrays(path) as content:
            models = tuple(
                Model(
                    name=str(init),
                    fraction=float(content["fraction"][place]),
                    seeds=tuple(int(seed) for seed in content[f"seeds_{place}"]),
                    outputs=content[f"outputs_{place}"],
                    reason=str(content["reason"][place]),
                    members=int(content["members"][place]),
                )
                for place, init in enumerate(content["init"])
            )
            columns = {column: content[column] for column in ("scan", "person", "split")}
            table = pd.DataFrame(columns)
            fold_of = content.get("made_by")
            return Evidence(name, task, table, content["target"], models, fold_of)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder.parent.name}/{folder.name}/{path.name}: no predictions to compare "
            f"({type(error).__name__}). Run evaluate again."
        ) from error


def hash_scan(sha256: str) -> str:
    """Return what identifies a scan to those who have its image, and tells nobody else."""
    return hashlib.sha256(f"scan\0{sha256}".encode()).hexdigest()
