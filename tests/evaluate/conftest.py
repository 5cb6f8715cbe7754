from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import EXCLUDED, SCANS
from neurofoundry.contracts.encoder import EncoderParams, Plan
from neurofoundry.contracts.models import run_folder
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, Volumes, write_volume
from neurofoundry.errors import DataError
from neurofoundry.evaluate.inputs import Inputs, read
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.results import Results, measure
from neurofoundry.evaluate.run import evaluate
from neurofoundry.runtime.files import hash_file, write_json
from neurofoundry.runtime.stage import SCHEMA_VERSION, Workspace
from neurofoundry.runtime.tracking import Tracker
from neurofoundry.tasks import Classification, Regression, Task

GRID = Grid(spacing=6.0)

TASKS = {
    "alzheimers": Classification(
        column="diagnosis",
        classes=("CN", "AD"),
        eligible={"age": {"min": 55}},
    ),
    "stroke": Classification(column="stroke", classes=("no", "yes")),
    "sex": Classification(column="sex", classes=("F", "M")),
    "age": Regression(column="age"),
}

# How well a model knows the answer: signal over noise, familiar and new sites.
SKILL = {
    "simclr": (2.4, 1.6),
    "simclr-probe": (1.9, 1.4),
    "scratch": (1.3, 0.8),
    "frozen-random": (0.9, 0.5),
}


@dataclass(frozen=True)
class Folders:
    """The outputs of the four earlier stages, as their contracts describe them."""

    root: Path

    @property
    def inputs(self) -> dict[str, Any]:
        """As `evaluate` takes them."""
        folders = {name: self.root / name for name in ("cohort", "volumes", "models")}
        return folders | {"encoder": [self.root / "encoder"]}

    def read(self) -> Inputs:
        """The tables of the folders, as `evaluate` reads them."""
        folders = self.inputs
        return read(
            cohort_dir=folders["cohort"],
            volumes=Volumes(folders["volumes"]),
            encoder=folders["encoder"],
            models=folders["models"],
        )

    def predictions(
        self, task: str, init: str, fraction: float = 1.0, seed: int = 0, fold: int = 0
    ) -> Path:
        run = self.root / "models" / run_folder(task, init, fraction, seed, fold)
        return run / "predictions.tsv"

    def edit(self, path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        change(table).to_csv(path, sep="\t", index=False)


def scans_table(subjects: int, *, seed: int = 0, dataset: str = "clinic") -> pd.DataFrame:
    """A cohort with effects of age on diagnosis, a fifth scanned twice, one external site."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(subjects):
        site = ("alder", "birch", "cedar", "dogwood")[number % 4]
        external = site == "dogwood"
        name = f"{dataset}-external" if external else dataset
        age = round(float(random.uniform(40, 88)), 1)
        ill = age > 55 and random.random() < 0.25 + 0.012 * (age - 55)
        split = (
            "ood"
            if external
            else random.choice(["pretrain", "train", "val", "test"], p=[0.3, 0.35, 0.12, 0.23])
        )
        person = f"{name}/sub-{number:04d}"
        common = {
            "dataset": name,
            "subject": f"sub-{number:04d}",
            "person": person,
            "source": "bids",
            "split": split,
            "sex": "F" if random.random() < 0.52 else "M",
            "site": site,
            "scanner": "X",
            "field_strength": 1.5 if site == "birch" else 3.0,
            "diagnosis": "AD" if ill else "CN",
            "stroke": "yes" if random.random() < 0.35 else "no",
        }
        for session in range(1 + (random.random() < 0.2)):
            scan_id = f"{name}_sub-{number:04d}_ses-{session + 1}"
            rows.append(
                {
                    **common,
                    "scan_id": scan_id,
                    "session": f"ses-{session + 1}",
                    "path": f"{name}/sub-{number:04d}/ses-{session + 1}/anat/{scan_id}_T1w.nii.gz",
                    "sha256": hashlib.sha256(scan_id.encode()).hexdigest(),
                    "age": round(age + 2 * session, 1),
                }
            )
    return pd.DataFrame(rows)


def write_inputs(
    root: Path,
    scans: pd.DataFrame,
    *,
    tasks: dict[str, Task] = TASKS,
    skill: dict[str, tuple[float, float]] = SKILL,
    fractions: tuple[float, ...] = (1.0,),
    seeds: tuple[int, ...] = (0,),
    estimable: bool = True,
    pictures: int = 8,
) -> Folders:
    """Write cohort/, volumes/, encoder/ and models/ for a table of scans."""
    folders = Folders(root)
    for name in ("cohort", "volumes", "encoder", "models"):
        (root / name).mkdir(parents=True)
    _write_cohort(folders, scans, pictures)
    _write_encoder(folders, scans)
    runs = []
    random = np.random.default_rng(1)
    volumes = pd.read_csv(root / "volumes/scans.tsv", sep="\t", keep_default_na=False)
    usable = scans[(volumes["usable"].astype(str).str.lower() == "true").to_numpy()]
    numbers = range(1, folds.count(scans) + 1) or [0]
    for name, init, fraction, seed, fold in product(tasks, skill, fractions, seeds, numbers):
        task, inside = tasks[name], folds.in_fold(usable, fold)
        run = {"task": name, "init": init, "fraction": fraction, "seed": seed, "fold": fold}
        done = {"status": "done", "reason": None}
        missing = {"status": "not estimable", "reason": "no labels in train"}
        runs.append(run | (done if estimable else missing))
        if estimable:
            rows = task.select(inside[inside["split"].isin(["val", "test", "ood"])])
            outputs = simulate(task, rows, skill[init], fraction, random)
            path = folders.predictions(name, init, fraction, seed, fold)
            path.parent.mkdir(parents=True)
            write_table(outputs, path)
            learned = task.select(inside[inside["split"] == "train"])
            other = np.random.default_rng(len(runs))
            fitted = simulate(task, learned, skill[init], fraction, other)
            write_table(fitted, path.with_name("fitted.tsv"))
    held_out = usable[usable["split"].isin(["val", "test", "ood"])]
    (root / "models/features").mkdir()
    features = random.normal(size=(len(held_out), 16))
    features[:, 0] += 3 * (held_out["site"] == "birch")
    learned = usable[usable["split"] == "train"]
    of_learned = np.random.default_rng(9).normal(size=(len(learned), 16))
    np.savez(
        root / "models/features/simclr.npz",
        scan_id=pd.concat([held_out, learned])["scan_id"].to_numpy(str),
        features=np.concatenate([features, of_learned]),
    )
    columns = ["task", "init", "fraction", "seed", *(["fold"] if 0 not in numbers else [])]
    table = pd.DataFrame(runs, columns=[*columns, "status", "reason"])
    write_table(table, root / "models/runs.tsv")
    starts = {
        init: {
            "encoder": "simclr" if "simclr" in init else "random",
            "mode": "probe" if init in ("simclr-probe", "frozen-random") else "finetune",
        }
        for init in skill
    }
    write_record(folders.root / "models", "finetune", finetune={"initializations": starts})
    return folders


def simulate(
    task: Task,
    rows: pd.DataFrame,
    skill: tuple[float, float],
    fraction: float,
    random: np.random.Generator,
) -> pd.DataFrame:
    """Predictions of a model that knows the answer as well as ``skill`` says."""
    strength = np.where(rows["split"] == "ood", skill[1], skill[0]) * fraction**0.35
    targets = task.targets(rows)
    noise = random.normal(size=(len(rows), max(1, len(task.classes) - 1)))
    head = rows[["scan_id", "dataset", "person", "session", "split", "site"]]
    head = head.assign(label=rows[task.column].astype(str))
    if task.kind == "regression":
        centre = targets.mean() if len(targets) else 0
        kept = strength / (strength + 0.6)
        output = centre + kept * (targets - centre) + 9 * noise[:, 0] / (1 + strength)
        return head.assign(output=output)
    if len(task.classes) == 2:
        logit = strength * (targets - 0.5) + noise[:, 0]
        p = 1 / (1 + np.exp(-1.6 * logit))
        return head.assign(**{f"p_{task.classes[0]}": 1 - p, f"p_{task.classes[1]}": p})
    logits = random.normal(size=(len(rows), len(task.classes)))
    logits += strength[:, None] * np.eye(len(task.classes))[targets.astype(int)]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return head.assign(**{f"p_{name}": p[:, k] for k, name in enumerate(task.classes)})


def _write_cohort(folders: Folders, scans: pd.DataFrame, pictures: int) -> None:
    cohort, volumes = folders.root / "cohort", folders.root / "volumes"
    write_table(scans, cohort / "scans.tsv", SCANS)
    excluded = [
        ("clinic", "sub-9001/anat/sub-9001_T1w.nii.gz", "cut short: 10 of 90 bytes"),
        ("clinic", "sub-9002/anat/sub-9002_T1w.nii.gz", "cut short: 40 of 90 bytes"),
        ("clinic", "sub-9003/anat/sub-9003_T1w.nii.gz", "a copy of sub-0001/sub-0001_T1w.nii.gz"),
    ]
    write_table(
        pd.DataFrame(excluded, columns=["dataset", "path", "reason"]),
        cohort / "excluded.tsv",
        EXCLUDED,
    )
    # Every fortieth scan fails, so that the page has something to show.
    fails = np.arange(len(scans)) % 40 == 17
    table = scans.assign(
        usable=~fails,
        reason=np.where(fails, "overlap with the template: 0.61, expected at least 0.8", None),
    )
    _write_volumes(volumes, table)
    names = [f"{scan_id}.nii" for scan_id in scans["scan_id"]]
    hashes = [hash_file(volumes / name) for name in names]
    write_table(table.assign(volume=names, volume_sha256=hashes), volumes / "scans.tsv", VOLUMES)
    random = np.random.default_rng(2)
    y, x = np.mgrid[-1:1:100j, -1:1:128j]
    for scan_id in [*scans["scan_id"][:pictures], *scans["scan_id"][fails][:2]]:
        planes = []
        for stretch in (0.75, 0.62, 0.68):
            radius = np.hypot(x / stretch, y / 0.8)
            grey = 90 * (radius < 1) + 70 * (radius < 0.8) - 90 * (np.hypot(x / 0.15, y / 0.3) < 1)
            planes.append(grey + random.normal(0, 9, grey.shape) * (radius < 1))
        pixels = np.clip(np.concatenate(planes, axis=1), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(volumes / f"{scan_id}.png")
    write_record(cohort, "ingest")
    write_record(volumes, "preprocess")


def head(wide: bool, large: bool) -> tuple[np.ndarray, np.ndarray]:
    """z-scores and mask of a head on GRID: a ball of white in grey, with fluid in the middle."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij")
    places = np.stack([x, y, z], -1) * GRID.spacing + GRID.affine[:3, 3]
    radius = np.linalg.norm((places - [0, -18, 8]) / [68, 84, 66], axis=-1) / (1.1 if large else 1)
    image = np.select([radius < 0.3 + 0.15 * wide, radius < 0.75], [-2.0, 1.0], 0.0)
    return image, radius < 1


def _write_volumes(folder: Path, table: pd.DataFrame) -> None:
    """A volume of every scan: the ill have wide ventricles, men large heads."""
    write_json(folder / "grid.json", {"grid": GRID.describe(), "params": {}})
    for key, rows in table.groupby([table["diagnosis"] == "AD", table["sex"] == "M"]):
        first, *others = (folder / f"{scan_id}.nii" for scan_id in rows["scan_id"])
        write_volume(first, *head(*key), GRID)
        for other in others:
            other.hardlink_to(first)


def _write_encoder(folders: Folders, scans: pd.DataFrame) -> None:
    encoder = folders.root / "encoder"
    seen = scans[scans["split"].isin(["pretrain", "train"])]
    write_table(pd.DataFrame({"person": sorted(set(seen["person"]))}), encoder / "subjects.tsv")
    epochs = np.arange(1, 13)
    history = pd.DataFrame(
        {
            "epoch": epochs,
            "step": epochs * 9,
            "loss": 1.9 + 2.1 * np.exp(-epochs / 3.5),
            "learning_rate": 1e-3,
            "effective_rank": 10 + epochs,
        }
    )
    write_table(history, encoder / "history.tsv")
    plan = Plan(
        name="simclr",
        encoder=EncoderParams(),
        features=512,
        grid=Grid().describe(),
        method="simclr",
        licence="MIT",
    )
    write_json(encoder / "plan.json", plan)
    random = np.random.default_rng(3)
    pixels = random.integers(0, 255, (96, 96), dtype=np.uint8)
    Image.fromarray(pixels).save(encoder / "views.png")
    write_record(encoder, "pretrain")


def write_record(folder: Path, name: str, **params: Any) -> None:
    """stage.json, as far as people read it."""
    record = {
        "stage": name,
        "schema_version": SCHEMA_VERSION,
        "package_version": "0.1.0",
        "code_sha256": "0123456789abcdef",
        "libraries": {"python": "3.11.9", "torch": "2.13.0"},
        "data_version": "f" * 64,
        "params": params,
        "contents": {},
    }
    (folder / "stage.json").write_text(json.dumps(record))


def run(
    folders: Folders,
    out: Path,
    *,
    tasks: dict[str, Task] = TASKS,
    seed: int = 0,
    tracker: Tracker | None = None,
    **params: Any,
) -> Workspace:
    """Run the stage into ``out``, without publishing."""
    out.mkdir()
    values = EvaluateParams.model_validate({"reference": "scratch", "bootstraps": 200, **params})
    work = Workspace(dir=out, earlier=(), tracker=tracker or Tracker(), data_version="v")
    evaluate(work, **folders.inputs, params=values, tasks=tasks, seed=seed)
    return work


@pytest.fixture(scope="session")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """260 subjects, four tasks, four initializations; tests read it and never write to it."""
    return write_inputs(tmp_path_factory.mktemp("usual") / "in", scans_table(260))


@pytest.fixture(scope="session")
def results(usual: Folders) -> Results:
    """What is measured of ``usual``."""
    return measure(
        usual.read(),
        Volumes(usual.inputs["volumes"]),
        usual.inputs["models"],
        tasks=TASKS,
        params=EvaluateParams(reference="scratch", bootstraps=100),
        seed=0,
    )


@pytest.fixture(scope="session")
def evaluated(usual: Folders, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return run(usual, tmp_path_factory.mktemp("evaluated") / "out")


@pytest.fixture
def folders(usual: Folders, tmp_path: Path) -> Folders:
    """A copy that may be broken."""
    shutil.copytree(usual.root, tmp_path / "in")
    return Folders(tmp_path / "in")


def fails(folders: Folders, tmp_path: Path, *words: str, error: type = DataError) -> None:
    with pytest.raises(error) as caught:
        run(folders, tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
