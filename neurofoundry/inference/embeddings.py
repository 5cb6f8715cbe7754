"""Embeddings: preprocess each scan, show it to the encoder, keep the features.

A scan's features are kept under a key, the hash of its image, of the weights and of what its
volume depends on, until the table is whole: a kill loses only the scans in flight.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neurofoundry.contracts.encoder import Plan, check_grid, check_volumes
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VolumeFolder, Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune.network import infer
from neurofoundry.inference.scans import Found, find
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.nn.encoders import Encoder
from neurofoundry.params import validate
from neurofoundry.preprocess.cache import source_hash
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.scan import Job, output_files
from neurofoundry.preprocess.template import fingerprint
from neurofoundry.preprocess.workers import preprocess_jobs
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.output import lock_folder

BATCH = 8
"""Volumes that a GPU sees at once; on a CPU it is one."""


@dataclass(frozen=True)
class Weights:
    """An encoder, and what its volumes are made like."""

    encoder: Encoder
    plan: Plan
    sha256: str
    recipe: Mapping[str, Any]
    """``Plan.preprocess``."""


@dataclass(frozen=True)
class Embedded:
    """What is known of one scan."""

    scan: str
    scan_id: str
    sha256: str
    reason: str
    """Why there are no features, or why they are not to be trusted; '' when they are."""
    features: NDArray[np.float32] | None


def embed(
    places: Sequence[Path],
    *,
    weights: Path,
    out: Path,
    workers: int,
    params: PreprocessParams | None = None,
    template: Path | None = None,
) -> None:
    """Write the table ``out`` (.tsv or .parquet), one row a scan: features, or the reason why not.

    ``places`` are raw scans, or outputs of preprocess. ``params`` are for weights that do not say
    how their volumes are made; ``template`` is the folder of a template that is not nilearn's.
    Raises DataError and UsageError.
    """
    encoder, plan = encoders.load(weights)
    recipe = plan.preprocess
    if params is not None and recipe:
        raise UsageError(
            f"--params: {weights} says itself how its volumes are made. Leave --params out."
        )
    if params is not None:
        if params.template is not None:
            raise UsageError("--params: preprocess.template has no effect here. Give --template.")
        recipe = params.model_dump(mode="json", exclude={"outliers", "overrides"})
        recipe |= fingerprint(template)
    found = Weights(encoder, plan, hash_file(weights / "encoder.safetensors"), recipe)
    with table(out) as (work, write):
        rows = list(features_of(places, found, work=work, workers=workers, template=template))
        values = np.full((len(rows), plan.features), np.nan, np.float32)
        for number, row in enumerate(rows):
            if row.features is not None:
                values[number] = row.features
        columns = pd.DataFrame(values, columns=[f"f{i:04d}" for i in range(plan.features)])
        write(pd.concat([describe(rows), columns], axis=1))


def describe(rows: Sequence[Embedded]) -> pd.DataFrame:
    """The columns that every table begins with."""
    return pd.DataFrame(
        {
            "scan": [row.scan for row in rows],
            "scan_id": [row.scan_id or None for row in rows],
            "usable": [not row.reason for row in rows],
            "reason": [row.reason or None for row in rows],
            "sha256": [row.sha256 or None for row in rows],
        }
    )


@contextmanager
def table(out: Path) -> Iterator[tuple[Path, Any]]:
    """A folder to work in, and the function that writes the table whole and ends the work."""
    if out.suffix not in (".tsv", ".parquet"):
        raise UsageError(f"--out {out}: expected a table, .tsv or .parquet.")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UsageError(
            f"--out {out}: Parquet needs pyarrow, which is not installed. "
            "Install it (`pip install 'neurofoundry[parquet]'`), or write .tsv."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.partial")
    work.mkdir(exist_ok=True)
    lock = lock_folder(work, out)

    def write(content: pd.DataFrame) -> None:
        if out.suffix == ".tsv":
            write_table(content, out)
        else:
            content.to_parquet(work / "whole", index=False)
            (work / "whole").replace(out)
        shutil.rmtree(work)

    try:
        yield work, write
    finally:
        os.close(lock)


def features_of(
    places: Sequence[Path],
    weights: Weights,
    *,
    work: Path,
    workers: int,
    template: Path | None = None,
) -> Iterator[Embedded]:
    """Features of every scan below ``places``, in the order in which they were found.

    Raises DataError and UsageError.
    """
    encoders.place(weights.encoder)
    volumes = [place for place in places if (place / "grid.json").is_file()]
    for folder in volumes:
        yield from _of_volumes(folder, weights, work)
    raw = [place for place in places if place not in volumes]
    if not raw:
        return
    if not weights.recipe:
        raise UsageError(
            f"The weights '{weights.plan.name}' do not say how volumes are made of raw scans. "
            "Give --params with the section 'preprocess', or the output of preprocess as scans."
        )
    _check_template(weights, template)
    found = find(raw, nifti=work / "nifti", workers=workers)
    yield from _of_scans(found, weights, work, workers, template)


def _check_template(weights: Weights, template: Path | None) -> None:
    """Raise UsageError unless it is the one of the weights' volumes."""
    expected = weights.recipe.get("template_sha256")
    if fingerprint(template).get("template_sha256") == expected:
        return
    if expected is None:
        raise UsageError(
            f"--template: volumes of the weights '{weights.plan.name}' were made with the template "
            "that comes with nilearn. Leave it out."
        )
    raise UsageError(
        f"Volumes of the weights '{weights.plan.name}' were made with another template than "
        f"{template or 'the one that comes with nilearn'}. Give its folder as --template: the "
        f"SHA-256 of its files, taken together, is {expected}."
    )


def _of_volumes(folder: Path, weights: Weights, work: Path) -> Iterator[Embedded]:
    """Of an output of preprocess."""
    volumes = Volumes(folder)
    check_volumes(weights.plan, volumes)
    scans = volumes.scans
    rows = scans.astype(object).where(scans.notna(), "").to_dict("records")
    keys = {
        row["scan_id"]: _hash(weights.sha256, row["volume_sha256"])
        for row in rows
        if row["volume_sha256"]
    }
    waiting = [scan_id for scan_id, key in keys.items() if _kept(work, key) is None]
    for batch in _batches(waiting):
        features = _forward(weights.encoder, volumes, batch)
        for scan_id, values in zip(batch, features, strict=True):
            _keep(work, keys[scan_id], values)
    for row in rows:
        key = keys.get(row["scan_id"])
        found = None if key is None else _kept(work, key)
        yield Embedded(row["path"], row["scan_id"], row["sha256"], row["reason"], found)


def _of_scans(
    scans: Sequence[Found], weights: Weights, work: Path, workers: int, template: Path | None
) -> Iterator[Embedded]:
    """Of raw scans: a volume is made, seen by the encoder and removed again."""
    beside = ("standard", "template_sha256")
    given = {name: value for name, value in weights.recipe.items() if name not in beside}
    params = validate(given, PreprocessParams, origin="preprocess of the weights' plan")
    grid = params.grid
    check_grid(weights.plan, grid)
    standard = list(weights.recipe.get("standard", ()))
    settings = json.dumps(dict(weights.recipe), sort_keys=True) + source_hash()
    keys = {scan.scan_id: _hash(weights.sha256, settings, scan.sha256) for scan in scans}
    readable = {keys[scan.scan_id]: scan for scan in scans if not scan.reason}
    results: dict[str, str] = {}
    ready: list[str] = []

    def forward() -> None:
        if not ready:
            return
        features = _forward(weights.encoder, VolumeFolder(work, grid), ready)
        for key, values in zip(ready, features, strict=True):
            _keep(work, key, values, results[key])
            for name in output_files(params.registration):
                (work / name.format(key)).unlink(missing_ok=True)
        ready.clear()

    waiting = []
    for key, scan in readable.items():
        if (kept := _reason(work, key)) is not None:
            results[key] = kept
        else:
            assert scan.file is not None
            waiting.append(Job(scan.file, scan_id=key, sha256=scan.sha256, key=key))
    for job, result, _ in preprocess_jobs(
        waiting, out=work, params=params, template=template, standard=standard, workers=workers
    ):
        key = job.key
        results[key] = result.reason or judge(result.measures, params.quality) or ""
        if result.volume_sha256:
            ready.append(key)
        elif (work / f"{key}.json").exists():  # not a defect of ours, which is tried again
            _keep(work, key, None, results[key])
        if len(ready) == _batch_size():
            forward()
    forward()
    for scan in scans:
        if scan.reason:
            yield Embedded(scan.scan, "", "", scan.reason, None)
        else:
            key = keys[scan.scan_id]
            yield Embedded(scan.scan, scan.scan_id, scan.sha256, results[key], _kept(work, key))


def _batch_size() -> int:
    return BATCH if torch.cuda.is_available() else 1


def _batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    size = _batch_size()
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _forward(encoder: Encoder, volumes: VolumeFolder, names: Sequence[str]) -> NDArray[np.float32]:
    """Features (scans, features)."""
    read = partial(read_batch, volumes)
    features: NDArray[np.float32] = infer(encoder, names, read, size=_batch_size()).numpy()
    if not np.isfinite(features).all():
        raise DataError("The encoder gives features that are not numbers. Its weights are damaged.")
    return features


def _keep(work: Path, key: str, features: NDArray[np.float32] | None, reason: str = "") -> None:
    values = np.empty(0, np.float32) if features is None else features
    temporary = work / f".{key}.npz"
    np.savez(temporary, features=values, reason=np.array(reason))
    temporary.replace(work / f"{key}.npz")


def _kept(work: Path, key: str) -> NDArray[np.float32] | None:
    """Features; None where there are none (yet)."""
    try:
        with np.load(work / f"{key}.npz", allow_pickle=False) as found:
            features: NDArray[np.float32] = found["features"]
    except FileNotFoundError:
        return None
    return features if features.size else None


def _reason(work: Path, key: str) -> str | None:
    """The verdict; None where there is none yet."""
    try:
        with np.load(work / f"{key}.npz", allow_pickle=False) as found:
            return str(found["reason"])
    except FileNotFoundError:
        return None


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
