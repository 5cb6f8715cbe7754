"""The standard scale to which nyul maps every scan: fitted once, kept in landmarks.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.errors import DataError
from neurofoundry.preprocess import intensity
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.cache import make_key
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import Job
from neurofoundry.preprocess.workers import Worker, histogram, pool
from neurofoundry.runtime.cache import take
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.progress import Progress
from neurofoundry.runtime.stage import Workspace

LANDMARKS = "landmarks.json"
TRAINING = ("pretrain", "train")
"""Splits that anything may be fitted on."""


def scans_to_fit(cohort: pd.DataFrame) -> pd.DataFrame:
    """Return scans that nothing will be tested on; every shard of a cohort fits the same ones."""
    training = cohort[cohort["split"].isin(TRAINING)].sort_values(["sha256", "scan_id"])
    return training.head(intensity.FIT_SCANS)


def standard_scale(
    work: Workspace,
    jobs: Sequence[Job],
    settings: str,
    *,
    params: PreprocessParams,
    template: Path | None,
    workers: int,
) -> list[float]:
    """Return the standard landmarks of the scans ``jobs``, and write them into the work folder.

    They are kept under a key, as scans are; ``settings`` are part of it. Raises DataError where
    none of the scans shows a brain.
    """
    key = make_key(settings, *(job.sha256 for job in jobs))
    path = work.dir / LANDMARKS
    earlier = [folder / LANDMARKS for folder in work.earlier]
    if not take(path, key, earlier=earlier, key_of=_key_of):
        write_json(path, {"key": key, **_fit(jobs, params, template, workers)})
    return [float(value) for value in json.loads(path.read_text())["standard"]]


def _key_of(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _fit(
    jobs: Sequence[Job], params: PreprocessParams, template: Path | None, workers: int
) -> dict[str, Any]:
    brains = []
    worker = Worker(params, templates.build(params.registration_spacing, template))
    if jobs:
        with (
            Progress("fit nyul", len(jobs), unit="scans") as progress,
            pool(min(workers, len(jobs)), worker) as executor,
        ):
            for brain in executor.map(histogram, jobs):
                progress.advance(failed=brain is None)
                if brain is not None:
                    brains.append(brain)
    if not brains:
        raise DataError(
            f"preprocess.normalization is nyul, and none of the {len(jobs)} scans of the splits "
            f"{' and '.join(TRAINING)} shows a brain to fit it to. Choose zscore, or add scans."
        )
    standard = intensity.standard_scale(brains)
    return {"percentiles": intensity.PERCENTILES, "standard": standard, "scans": len(brains)}
