"""A tiny volumes folder whose labels can be seen in the images, and an encoder to start from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, write_volume
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.run import finetune
from neurofoundry.nn import encoders
from neurofoundry.runtime import stage
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import SCHEMA_VERSION
from neurofoundry.tasks import Classification, Regression, Task

GRID = Grid(spacing=6.0)
SPLITS = np.array(["train", "train", "train", "val", "test", "test", "ood"])

DIAGNOSIS = Classification(column="diagnosis", classes=("CN", "AD"))
AGE = Regression(column="age")

FINETUNED: dict[str, Any] = {
    "initializations": {"scratch": {"encoder": "random", "mode": "finetune"}},
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "augmentation": "none",
}
PROBED: dict[str, Any] = {
    "initializations": {"probe": {"encoder": "simclr", "mode": "probe"}},
}


def scans_table(persons: int = 56) -> pd.DataFrame:
    """One scan a person, a second of every fourth; every other person is ill."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(persons):
        split = SPLITS[number // 2 % len(SPLITS)]
        name, age = f"sub-{number:03d}", float(random.integers(50, 90))
        for session in ("1", "2") if number % 4 == 0 else ("1",):
            scan_id = f"{name}_ses-{session}"
            rows.append(
                {
                    "scan_id": scan_id,
                    "dataset": "other" if split == "ood" else "tiny",
                    "subject": name,
                    "session": session,
                    "person": f"tiny/{name}",
                    "source": "bids",
                    "path": f"{scan_id}.nii.gz",
                    "sha256": hashlib.sha256(scan_id.encode()).hexdigest(),
                    "split": split,
                    "age": age,
                    "sex": None,
                    "site": "far" if split == "ood" else "near",
                    "scanner": None,
                    "field_strength": 3.0,
                    "diagnosis": "AD" if number % 2 == 0 else "CN",
                    "usable": True,
                    "reason": None,
                    "volume": f"{scan_id}.nii",
                    "volume_sha256": hashlib.sha256(f"{scan_id} z".encode()).hexdigest(),
                }
            )
    return pd.DataFrame(rows)


def write_volumes(folder: Path, scans: pd.DataFrame) -> Path:
    """Heads with a wide ventricle in AD, whose lower part darkens with age."""
    folder.mkdir(parents=True)
    middle = ((np.array(GRID.shape) - 1) / 2)[:, None, None, None]
    axes = (np.indices(GRID.shape) - middle) / middle
    radius = np.sqrt((axes**2).sum(0)) / 0.8
    brain = radius < 1
    for number, scan in enumerate(scans.itertuples()):
        image = np.random.default_rng(number).normal(0, 0.4, GRID.shape) + 1.5 * (radius > 0.75)
        image[radius < (0.5 if scan.diagnosis == "AD" else 0.35)] -= 3
        image[axes[2] < -0.3] -= (scan.age - 70) / 20
        image = (image - image[brain].mean()) / image[brain].std()
        write_volume(folder / f"{scan.scan_id}.nii", image, brain, GRID)
    write_json(folder / "grid.json", {"grid": GRID.describe(), "params": {}})
    return with_scans(folder, scans)


def with_scans(folder: Path, scans: pd.DataFrame) -> Path:
    volumes = [folder / f"{scan_id}.nii" for scan_id in scans["scan_id"]]
    hashes = [hash_file(path) if path.exists() else None for path in volumes]
    names = [path.name if path.exists() else None for path in volumes]
    write_table(scans.assign(volume=names, volume_sha256=hashes), folder / "scans.tsv", VOLUMES)
    return finished(folder, "preprocess", "scans.tsv")


def write_encoder(
    folder: Path, *, grid: Grid = GRID, persons: tuple[str, ...] = ("a/1",), seed: int = 1
) -> Path:
    """Weights that pretraining could have left: those of another seed."""
    folder.mkdir(parents=True)
    params = EncoderParams(stem_stride=2, width=0.125)
    encoder = encoders.build(params, seed=seed)
    plan = Plan(
        name="simclr",
        encoder=params,
        features=encoder.features,
        grid=grid.describe(),
        method="simclr",
        licence="none",
    )
    encoders.save(folder, encoder, plan)
    write_table(pd.DataFrame({"person": persons}), folder / "subjects.tsv")
    return finished(folder, "pretrain", "encoder.safetensors")


def finished(folder: Path, name: str, content: str) -> Path:
    """Give a folder the record of the stage that would have written it."""
    record = {
        "stage": name,
        "schema_version": SCHEMA_VERSION,
        "data_version": "tiny",
        "contents": {content: hash_file(folder / content)},
    }
    write_json(folder / "stage.json", record)
    return folder


WHOLE = stage.Shard()


def run(
    out: Path,
    volumes: Path,
    encoder: Path,
    params: Mapping[str, Any],
    tasks: Mapping[str, Task],
    seed: int = 0,
    shard: stage.Shard = WHOLE,
    reuse: Sequence[Path] = (),
) -> Path:
    """The stage as the command line runs it."""
    values = FinetuneParams.model_validate(params)
    stage.run(
        "finetune",
        lambda work: finetune(
            work, volumes=volumes, encoder=[encoder], params=values, tasks=tasks, seed=seed
        ),
        to=stage.Destination(out, shard=shard, reuse=tuple(reuse)),
        params={"finetune": values, "tasks": dict(tasks), "seed": seed},
        inputs={"preprocess": volumes, "pretrain/simclr": encoder},
    )
    return out


def read_model(folder: Path, encoder: Path, task: Task) -> Network:
    """A network with the weights of a model's folder."""
    network = Network(encoders.load(encoder)[0], task)
    encoders.read_weights(folder / "model.safetensors", network)
    return network.eval()


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.tsv", sep="\t", dtype={"session": str})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of models but its record, which holds dates."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


def same_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
