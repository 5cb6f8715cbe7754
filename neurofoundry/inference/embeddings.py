"""Embeddings: preprocess each scan, show it to the encoder, keep the features."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from neurofoundry.contracts.cohort import T1W, further
from neurofoundry.contracts.encoder import Plan, check_grid, check_volumes
from neurofoundry.contracts.recipe import PATHS, MaskProgram, describe, describe_command
from neurofoundry.contracts.tables import guard_texts, write_table
from neurofoundry.contracts.volumes import VolumeFolder, Volumes
from neurofoundry.errors import DataError, UsageError
from neurofoundry.finetune.network import infer
from neurofoundry.inference.feature_cache import FeatureCache
from neurofoundry.inference.scans import InputScan, find_scans, is_volumes
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.params import validate
from neurofoundry.preprocess import coregistration
from neurofoundry.preprocess.cache import make_key, source_hash
from neurofoundry.preprocess.intensity import PERCENTILES as LANDMARKS
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.params import MaskParams, PreprocessParams
from neurofoundry.preprocess.quality import judge
from neurofoundry.preprocess.scan import Job, Result
from neurofoundry.preprocess.template import fingerprint
from neurofoundry.preprocess.workers import preprocess_jobs
from neurofoundry.runtime.cells import read_cell
from neurofoundry.runtime.files import atomic, hash_file
from neurofoundry.runtime.guard import guard_table
from neurofoundry.runtime.links import check_links
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.output import lock_folder
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.verify import check

BATCH = 8
"""Volumes that a GPU sees at once; a CPU sees one."""

DESCRIBED = ("scan", "scan_id", "usable", "reason", "sha256")
"""The columns that every table begins with."""

WriteTable = Callable[[pd.DataFrame], None]


@dataclass(frozen=True)
class Weights:
    """What gives scans their features, and how its volumes are made."""

    encoder: nn.Module
    """An encoder, or several side by side."""
    plan: Plan
    sha256: str
    recipe: Mapping[str, Any]
    """``Plan.preprocess``."""

    def see(
        self, jobs: Sequence[Job], volumes: VolumeFolder, params: PreprocessParams
    ) -> NDArray[np.floating]:
        """Return what is kept of raw scans, (scans, values), when their ``volumes`` have been made
        with ``params``: their features."""
        return _forward(self, volumes, [job.scan_id for job in jobs])


@dataclass(frozen=True)
class Embedded:
    """What is known of one scan."""

    scan: str
    scan_id: str
    sha256: str
    reason: str
    """Why there are no features, or why they are not to be trusted; '' when they are."""
    features: NDArray[np.floating] | None
    """What `Weights.see` has kept."""
    key: str = ""
    """Of what is kept of a raw scan."""
    contrasts: tuple[str, ...] = (T1W,)
    """Those that there were of the ones that the weights take."""


def embed(
    places: Sequence[Path],
    *,
    weights: Path,
    out: Path,
    workers: int,
    params: PreprocessParams | None = None,
    template: Path | None = None,
    mask_command: str | None = None,
) -> None:
    """Write the table ``out`` (.tsv or .parquet), one row a scan: features, or why there are none.

    ``places`` are raw scans, or outputs of preprocess. ``params`` are for weights that do not say
    how their volumes are made. ``template`` is the folder of a template that is not nilearn's, and
    ``mask_command`` the program that finds the brain, for weights whose volumes were made so: their
    plan can name neither. Raises DataError and UsageError.
    """
    read = [*places, weights, *([template] if template else [])]
    guard_table(out, columns=DESCRIBED, inputs=read)
    check_links(weights)  # before anything is hashed: a link may lead to a device
    encoder, plan = encoders.load(weights)
    recipe = plan.preprocess
    if params is not None and recipe:
        raise UsageError(
            f"--params: {weights} says itself how its volumes are made. Leave --params out."
        )
    if params is not None:
        if params.template is not None:
            raise UsageError("--params: preprocess.template has no effect here. Give --template.")
        recipe = describe(params.model_dump(mode="json")) | fingerprint(template)
        recipe |= {"device": params.device, "batch": params.batch}
        if params.mask is not None:
            if mask_command is not None:
                raise UsageError("--mask-command: --params names a mask command. Leave one out.")
            mask_command = params.mask.command
    sha256 = hash_file(weights / "encoder.safetensors")
    loaded = Weights(encoder, plan, sha256, recipe)
    with open_table(out) as (work, write):
        rows = list(
            embed_scans(
                places,
                loaded,
                work=work,
                workers=workers,
                template=template,
                mask_command=mask_command,
            )
        )
        values = np.full((len(rows), plan.features), np.nan, np.float32)
        for number, row in enumerate(rows):
            if row.features is not None:
                values[number] = row.features
        columns = pd.DataFrame(values, columns=[f"f{i:04d}" for i in range(plan.features)])
        write(pd.concat([describe_scans(rows, plan), columns], axis=1))


def features_of(
    places: Sequence[str | PathLike[str]],
    *,
    weights: str | PathLike[str],
    workers: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """Return what `embed` writes, with the scans as index: columns scan_id, usable, reason, sha256
    and f0000 and so on.

    ``places`` are raw scans (NIfTI, BIDS, DICOM, or folders of them) or outputs of preprocess;
    ``options`` are those of `embed`. Worker processes import the script that calls this: it must
    do so below ``if __name__ == "__main__":``. Raises DataError and UsageError.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "features.tsv"
        read = [Path(place) for place in places]
        embed(read, weights=Path(weights), out=out, workers=workers, **options)
        table = pd.read_csv(out, sep="\t", keep_default_na=False, na_values=["n/a"])
        table[["scan", "reason"]] = table[["scan", "reason"]].map(read_cell, na_action="ignore")
    return table.set_index("scan")


def describe_scans(rows: Sequence[Embedded], plan: Plan) -> pd.DataFrame:
    """Return the columns ``DESCRIBED``; of weights of several contrasts also which there were."""
    table = pd.DataFrame(
        {
            "scan": [row.scan for row in rows],
            "scan_id": [row.scan_id or None for row in rows],
            "usable": [not row.reason for row in rows],
            "reason": [row.reason or None for row in rows],
            "sha256": [row.sha256 or None for row in rows],
        },
        columns=list(DESCRIBED),
    )
    if plan.contrasts[1:]:
        shown = ["+".join(row.contrasts) if row.features is not None else None for row in rows]
        table = table.assign(contrasts=pd.Series(shown, dtype=object))
    return table


@contextmanager
def open_table(out: Path) -> Iterator[tuple[Path, WriteTable]]:
    """Give a folder to work in until all is done, and the function that writes the table whole.

    Raises UsageError where the table cannot be written, or another process is writing it.
    """
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

    def write(table: pd.DataFrame) -> None:
        if out.suffix == ".tsv":
            write_table(table, out)
        else:
            with atomic(out) as temporary:
                guard_texts(table).to_parquet(temporary, index=False)

    try:
        yield work, write
        shutil.rmtree(work)
    finally:
        os.close(lock)


def embed_scans(
    places: Sequence[Path],
    weights: Weights,
    *,
    work: Path,
    workers: int,
    template: Path | None = None,
    mask_command: str | None = None,
) -> Iterator[Embedded]:
    """Yield the features of every scan below ``places``, in the order in which they are found.

    What is done is kept in the folder ``work``, and not done again after a kill. Raises DataError
    and UsageError.
    """
    encoders.place(weights.encoder)
    outputs = [place for place in places if is_volumes(place)]
    for folder in outputs:
        check_links(folder)  # before anything is read: a pipe might never end
        check("preprocess", folder, items=True)
        yield from _embed_volumes(Volumes(folder), weights, FeatureCache(work))
    raw = [place for place in places if place not in outputs]
    if not raw:
        return
    if not weights.recipe:
        raise UsageError(
            f"The weights '{weights.plan.name}' do not say how volumes are made from raw scans. "
            "Give --params with the section 'preprocess', or the output of preprocess as scans."
        )
    _check_template(weights, template)
    params = _read_recipe(weights, _choose_mask(weights, mask_command))
    contrasts = weights.plan.contrasts
    scans = find_scans(raw, contrasts=contrasts, nifti=work / "nifti", workers=workers)
    yield from _embed_raw(scans, weights, params, FeatureCache(work), workers, template)


def _check_template(weights: Weights, template: Path | None) -> None:
    """Raise UsageError unless the weights' volumes were made with this template."""
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


def _choose_mask(weights: Weights, command: str | None) -> MaskParams | None:
    """Return the mask command to run: one that the user has given, and never one of the weights.

    Raises UsageError where it is missing, or where the weights know of none.
    """
    described = weights.recipe.get("mask")
    if described is None:
        if command is None:
            return None
        raise UsageError(
            f"--mask-command: volumes of the weights '{weights.plan.name}' are made without one. "
            "Leave it out."
        )
    made_with = MaskProgram.model_validate(described)
    if command is None:
        raise UsageError(
            f"Volumes of the weights '{weights.plan.name}' were masked by another program: "
            f"{made_with.program}, with a command whose SHA-256 is {made_with.command_sha256}. "
            "Weights can name no command to run. Give your own, such as --mask-command "
            "'mri_synthstrip -i {input} -m {output}'."
        )
    given = {"command": command, "timeout": made_with.timeout}
    mask = validate(given, MaskParams, origin="--mask-command")
    LOGGER.info("Running once a scan: %s", command)
    if describe_command(command, mask.timeout)["command_sha256"] != made_with.command_sha256:
        LOGGER.warning(
            "--mask-command: not the text that the weights' volumes were made with (%s, SHA-256 "
            "%s). Features are comparable only if it is the same program in the same version.",
            made_with.program,
            made_with.command_sha256,
        )
    return mask


def _embed_volumes(volumes: Volumes, weights: Weights, cache: FeatureCache) -> Iterator[Embedded]:
    """Yield the features of an output of preprocess."""
    check_volumes(weights.plan, volumes)
    scans = volumes.scans
    rows = scans.astype(object).where(scans.notna(), "").to_dict("records")
    contrasts = weights.plan.contrasts
    there = {
        row["scan_id"]: tuple(c for c in contrasts if row.get(further("volume_sha256", c)))
        for row in rows
    }
    keys = {
        row["scan_id"]: make_key(
            weights.sha256,
            *(row[further("volume_sha256", c)] for c in there[row["scan_id"]]),
            *(c for c in there[row["scan_id"]] if c != T1W),
        )
        for row in rows
        if row["volume_sha256"]
    }
    waiting = [scan_id for scan_id, key in keys.items() if cache.features(key) is None]
    done = len(keys) - len(waiting)
    with Progress("embed", len(keys), unit="volumes", done=done) as progress:
        for start in range(0, len(waiting), _batch_size()):
            batch = waiting[start : start + _batch_size()]
            features = _forward(weights, volumes, batch)
            for scan_id, values in zip(batch, features, strict=True):
                cache.keep(keys[scan_id], values)
            progress.advance(len(batch))
    for row in rows:
        key = keys.get(row["scan_id"])
        kept = None if key is None else cache.features(key)
        scan_id = row["scan_id"]
        yield Embedded(
            row["path"], scan_id, row["sha256"], row["reason"], kept, contrasts=there[scan_id]
        )


def _embed_raw(
    scans: Sequence[InputScan],
    weights: Weights,
    params: PreprocessParams,
    cache: FeatureCache,
    workers: int,
    template: Path | None,
) -> Iterator[Embedded]:
    """Yield the features of raw scans: each is made a volume, seen, and removed again."""
    settings = json.dumps(dict(weights.recipe), sort_keys=True) + source_hash()
    if params.mask is not None:
        settings += params.mask.command
    keys = {
        scan.scan_id: make_key(
            weights.sha256,
            settings,
            scan.sha256,
            *(f"{each.contrast} {each.sha256}" for each in scan.further),
        )
        for scan in scans
        if not scan.reason
    }
    reasons = {key: cache.reason(key) for key in keys.values()}
    # Copies of an image share its key.
    waiting = {
        key: Job(
            scan.file.resolve(), scan_id=key, sha256=scan.sha256, key=key, further=scan.further
        )
        for scan in scans
        if scan.file is not None and reasons[key := keys[scan.scan_id]] is None
    }
    layout = Layout.of(params)
    names = {T1W: layout.volume}
    names |= {c: layout.of_contrast(c)[0] for c in weights.plan.contrasts if c != T1W}
    volumes = VolumeFolder(cache.folder, params.grid, names)
    others = [name for c in volumes.contrasts[1:] for name in layout.of_contrast(c)]
    batch = _Batch(weights, params, volumes, cache, (*layout.files, *others))
    for job, result, _ in preprocess_jobs(
        list(waiting.values()),
        out=cache.folder,
        params=params,
        template=template,
        standard=weights.recipe.get("standard", ()),
        workers=workers,
    ):
        reason = result.reason or judge(result.measures, params.quality) or ""
        reasons[job.key] = reason
        if result.volume_sha256:
            batch.add(job, reason, _keep_sound(result, job, cache.folder, layout, params))
        elif (cache.folder / layout.result.format(job.key)).exists():
            cache.keep(job.key, None, reason)
        # Else it is a defect of ours: the next run tries again.
    batch.flush()
    for scan in scans:
        if scan.reason:
            yield Embedded(scan.origin, "", "", scan.reason, None)
        else:
            key = keys[scan.scan_id]
            reason, kept = reasons[key] or "", cache.features(key)
            there = cache.contrasts(key)
            yield Embedded(scan.origin, scan.scan_id, scan.sha256, reason, kept, key, there)


def _keep_sound(
    result: Result, job: Job, folder: Path, layout: Layout, params: PreprocessParams
) -> tuple[str, ...]:
    """Remove the volumes of further contrasts that are not to be trusted; return what is left."""
    there = [T1W]
    for contrast, each in result.further.items():
        why = each.reason or coregistration.judge(each.measures, params.coregistration)
        if why is None:
            there.append(contrast)
            continue
        LOGGER.warning("A %s image is left out: %s", contrast, why)
        (folder / layout.of_contrast(contrast)[0].format(job.stem)).unlink(missing_ok=True)
    return tuple(there)


def _read_recipe(weights: Weights, mask: MaskParams | None) -> PreprocessParams:
    """Return the parameters of the weights' volumes, with the user's mask command.

    Raises UsageError where the weights state impossible ones.
    """
    beside = ("standard", "template_sha256", "mask", *PATHS)
    given = {name: value for name, value in weights.recipe.items() if name not in beside}
    params = validate(given, PreprocessParams, origin="preprocess of the weights' plan")
    check_grid(weights.plan, params.grid)
    standard = weights.recipe.get("standard", [])
    needed = len(LANDMARKS) if params.normalization == "nyul" else len(standard)
    if len(standard) != needed or sorted(standard) != standard:
        raise UsageError(
            f"preprocess.standard of the weights' plan is {standard!r:.80}, expected {needed} "
            "increasing landmarks of nyul. Ask for the plan.json that was written with the weights."
        )
    return params.model_copy(update={"mask": mask})


@dataclass
class _Batch:
    """Volumes that wait until there are enough of them for the encoder."""

    weights: Weights
    params: PreprocessParams
    volumes: VolumeFolder
    cache: FeatureCache
    files: Sequence[str]
    """Files of a scan, which are removed when it has been seen."""
    reasons: dict[Job, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Why each scan is not usable, '' if it is, and which contrasts there are."""

    def add(self, job: Job, reason: str, contrasts: tuple[str, ...]) -> None:
        self.reasons[job] = reason, contrasts
        if len(self.reasons) == _batch_size():
            self.flush()

    def flush(self) -> None:
        if not self.reasons:
            return
        kept = self.weights.see(list(self.reasons), self.volumes, self.params)
        for (job, (reason, there)), values in zip(self.reasons.items(), kept, strict=True):
            self.cache.keep(job.key, values, reason, there)
            for name in self.files:
                (self.volumes.folder / name.format(job.stem)).unlink(missing_ok=True)
        self.reasons.clear()


def _batch_size() -> int:
    return BATCH if torch.cuda.is_available() else 1


def _forward(weights: Weights, volumes: VolumeFolder, names: Sequence[str]) -> NDArray[np.float32]:
    """Return features (scans, features)."""
    read = partial(read_batch, volumes, contrasts=weights.plan.contrasts)
    features: NDArray[np.float32] = infer(weights.encoder, names, read, size=_batch_size()).numpy()
    if not np.isfinite(features).all():
        raise DataError("The encoder gives features that are not numbers. Its weights are damaged.")
    return features
