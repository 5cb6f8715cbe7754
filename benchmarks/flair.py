"""Does FLAIR beside T1w outline strokes better? Dice on phantoms, with and without, by person.

    python benchmarks/flair.py FOLDER [--seed 2025] [--persons 640] [--epochs 16] [--seeds 2]
                                      [--classes infarct [white]]

Persons with a stroke are painted on a grid of 6 mm as if preprocessing had been faultless, in T1w
and in FLAIR. The stage finetune then trains the same small network from nothing, to outline the
``classes``, on the volumes of T1w alone and on those of both. Printed are the mean Dice of each
class on the test persons, and of several as one, and the paired difference, with a 95 % interval
from persons drawn again. Half of the persons are for training. What is done is kept in FOLDER. A
fresh seed is a fresh cohort. About 12 minutes of CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neurofoundry.contracts.encoder import SUBJECTS, EncoderParams, Plan
from neurofoundry.contracts.labels import CARRIED, FILE, TABLE, open_classes, write_classes
from neurofoundry.contracts.masks import MASKS, open_masks
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import (
    VOLUMES,
    Grid,
    Volumes,
    VolumesRecord,
    write_record,
    write_volume,
)
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.run import finetune
from neurofoundry.nn import encoders
from neurofoundry.phantom.anatomy import Subject, sample_subject
from neurofoundry.phantom.atlas import Atlas, build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, head_on_grid
from neurofoundry.preprocess.intensity import zscore
from neurofoundry.runtime import tracking
from neurofoundry.runtime.experiment import TrackingParams
from neurofoundry.runtime.files import hash_file, link
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Segmentation

GRID = Grid(spacing=6.0)
BOTH = ("T1w", "FLAIR")
CLASSES = {"infarct": lambda head: head.infarct, "white": lambda head: head.lesion & head.brain}
"""Which voxels of a `Head` are each; an infarct is not white matter."""
NETWORK = EncoderParams(stem_stride=2, width=0.125, norm="group")


def main() -> None:
    """Paint, train, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--persons", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=["infarct"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    root: Path = arguments.folder
    task = Segmentation.model_validate(
        {
            **{"kind": "segmentation", "column": "lesions", "classes": arguments.classes},
            "label": {"suffix": "mask"},
        }
    )
    both = paint(root / "both", arguments.persons, arguments.seed, task)
    alone = _t1w_alone(both, root / "t1w")
    start = write_start(root / "start")
    dice = {}
    for name, volumes in (("t1w", alone), ("both", both)):
        models = root / f"models-{name}"
        train(volumes, start, models, task, arguments.epochs, arguments.seeds)
        dice[name] = measure(models, volumes, len(task.classes), arguments.seeds)
    for number, name in enumerate((*task.classes, "as one")[: dice["t1w"].shape[1]]):
        report(name, {"T1w": dice["t1w"][:, number], "T1w+FLAIR": dice["both"][:, number]})


def paint(
    folder: Path,
    persons: int,
    seed: int,
    task: Segmentation,
    *,
    grid: Grid = GRID,
    contrasts: Sequence[str] = BOTH,
) -> Path:
    """Write a folder of volumes and label images, as preprocess does; what is there is kept."""
    if (folder / "scans.tsv").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    params = PhantomParams(subjects=9999, seed=seed, two_session_fraction=0, travelling_fraction=0)
    subjects = (sample_subject(params, index) for index in range(params.subjects))
    ill = [s for s, _ in zip((s for s in subjects if s.infarct), range(persons), strict=False)]
    atlas = build_atlas(2)
    rows = []
    with Progress("painting heads", len(ill), unit="persons") as progress:
        for number, subject in enumerate(ill):
            split = ("train", "test", "train", "val", "train", "test", "train", "test")[number % 8]
            rows.append(_scan(folder, split, subject, atlas, task, grid, contrasts))
            progress.advance()
    scans, labels = (pd.DataFrame(each) for each in zip(*rows, strict=True))
    more = {"contrasts": tuple(contrasts)} if len(contrasts) > 1 else {}
    write_record(folder, VolumesRecord(grid=grid.describe(), params={}, **more))
    write_table(labels[list(CARRIED.columns)], folder / TABLE, CARRIED)
    write_table(scans, folder / "scans.tsv", VOLUMES)
    return folder


def _scan(
    folder: Path,
    split: str,
    subject: Subject,
    atlas: Atlas,
    task: Segmentation,
    grid: Grid,
    contrasts: Sequence[str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Paint a person in every contrast; return the rows of scans.tsv and of labels.tsv."""
    site, scan_id = SITES[subject.site], subject.participant
    files = {contrast: folder / f"{scan_id}_{contrast}.nii" for contrast in contrasts}
    for contrast, path in files.items():
        head = head_on_grid(subject, "1", site, atlas, grid.affine, grid.shape, contrast)
        write_volume(path, zscore(head.image, head.brain), head.brain, grid)
    classes = np.zeros(head.brain.shape, np.uint8)
    for number, name in reversed([*enumerate(task.classes, 1)]):
        classes[CLASSES[name](head)] = number
    label = folder / FILE.format(scan_id=scan_id, task="lesions")
    write_classes(label, classes, grid.affine)
    shows = task.shows(classes)
    row = {
        "scan_id": scan_id,
        "dataset": "phantom",
        "subject": scan_id,
        "session": "1",
        "person": f"phantom/{scan_id}",
        "source": "bids",
        "path": f"{scan_id}_T1w.nii.gz",
        "sha256": hash_file(files["T1w"]),
        "split": split,
        "age": dict(subject.sessions)["1"],
        "sex": subject.sex,
        "site": site.name,
        "scanner": site.model,
        "field_strength": site.field_tesla,
        "lesions": shows,
        "usable": True,
        "reason": None,
        "volume": files["T1w"].name,
        "volume_sha256": hash_file(files["T1w"]),
    }
    for contrast in contrasts[1:]:
        row[f"volume_{contrast}"] = files[contrast].name
        row[f"volume_sha256_{contrast}"] = hash_file(files[contrast])
    ml = float((classes > 0).sum() * grid.spacing**3 / 1000)
    outlined = {
        "task": "lesions",
        "scan_id": scan_id,
        "path": label.name,
        "sha256": hash_file(label),
        "values": ";".join(map(str, range(1, len(task.classes) + 1))),
        "shows": shows,
        "ml": ml,
        "label_sha256": hash_file(label),
        "grid_ml": ml,
        "voxel_ml": grid.spacing**3 / 1000,
        "reason": None,
    }
    return row, outlined


def _t1w_alone(both: Path, folder: Path) -> Path:
    """Return the same volumes without FLAIR."""
    if not (folder / "scans.tsv").exists():
        folder.mkdir(exist_ok=True)
        for file in [*both.glob("*_T1w.nii"), *both.glob("*.label-*.nii"), both / TABLE]:
            (folder / file.name).unlink(missing_ok=True)
            link(file, folder / file.name)
        write_record(folder, VolumesRecord(grid=GRID.describe(), params={}))
        scans = pd.read_csv(both / "scans.tsv", sep="\t", keep_default_na=False)
        scans = scans.drop(columns=["volume_FLAIR", "volume_sha256_FLAIR"])
        scans.to_csv(folder / "scans.tsv", sep="\t", index=False)
    return folder


def write_start(folder: Path, grid: Grid = GRID) -> Path:
    """Write an untrained encoder, whose network those that start from nothing have, too."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = encoders.build(NETWORK, seed=0)
    plan = Plan(
        name="start",
        encoder=NETWORK,
        features=encoder.features,
        grid=grid.describe(),
        method="random",
        licence="none",
    )
    encoders.save(folder, encoder, plan)
    write_table(pd.DataFrame({"person": pd.Series(dtype=str)}), folder / "subjects.tsv", SUBJECTS)
    return folder


def train(
    volumes: Path,
    start: Path,
    out: Path,
    task: Segmentation,
    epochs: int,
    seeds: int,
    patch: int | None = None,
) -> None:
    """Train from nothing, by the stage; models that are there already are kept."""
    out.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "initializations": {"scratch": {"encoder": "random", "mode": "finetune"}},
        "seeds": list(range(seeds)),
        "epochs": epochs,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "augmentation": "none",
        "patch": patch,
    }
    quiet = TrackingParams(mode="disabled")
    with tracking.run(quiet, stage="finetune", key="0" * 16, group="g", config={}) as tracker:
        finetune(
            Workspace(dir=out, earlier=(), tracker=tracker, data_version=""),
            volumes=volumes,
            encoder=[start],
            params=FinetuneParams.model_validate(values),
            tasks={"lesions": task},
            seed=0,
        )


def measure(models: Path, volumes: Path, classes: int, seeds: int) -> NDArray[np.float64]:
    """Return the Dice of each test person and class, the mean over seeds, (persons, classes), and
    of several classes as one, in a further column.

    NaN where a person has none of a class.
    """
    scans = pd.read_csv(volumes / "scans.tsv", sep="\t")
    grid = Volumes(volumes).grid
    test = scans.loc[scans["split"] == "test", "scan_id"].tolist()
    found = np.full((seeds, len(test), classes + (classes > 1)), np.nan)
    for seed in range(seeds):
        outlined = open_masks(models / f"lesions/scratch/1.0/{seed}" / MASKS, grid)
        for person, scan_id in enumerate(test):
            truth = open_classes(volumes / FILE.format(scan_id=scan_id, task="lesions"), grid)
            guess = outlined(scan_id)
            pairs = [(truth == number, guess == number) for number in range(1, classes + 1)]
            for number, (a, b) in enumerate([*pairs, (truth > 0, guess > 0)][: found.shape[2]]):
                if a.any():
                    found[seed, person, number] = 2 * (a & b).sum() / (a.sum() + b.sum())
    mean: NDArray[np.float64] = found.mean(axis=0)
    return mean


def report(name: str, dice: Mapping[str, NDArray[np.float64]]) -> None:
    """Print the Dice of both ways, and what the second has more than the first, by person."""
    first, second = dice.values()
    there = np.isfinite(first)
    drawn = np.random.default_rng(0).integers(there.sum(), size=(5000, there.sum()))

    def interval(values: NDArray[np.float64]) -> Sequence[float]:
        low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
        return values.mean(), low, high

    rows = {**dice, "difference": second - first}
    print(f"{name}: {there.sum()} test persons")
    for what, values in rows.items():
        print("  {:12} {:.3f} ({:.3f} to {:.3f})".format(what, *interval(values[there])))


if __name__ == "__main__":
    main()
