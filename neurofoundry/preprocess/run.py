"""Preprocess: every scan of the cohort, in parallel, each done once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.contracts.cohort import (
    SCANS,
    T1W,
    further,
    read_alternates,
    read_contrasts,
)
from neurofoundry.contracts.sketches import SIMILAR
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import VOLUMES, VolumesRecord, picture_of, write_record
from neurofoundry.errors import DataError, UsageError
from neurofoundry.preprocess import copies, label_images, nyul, report
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.cache import ScanCache, make_key, scan_settings
from neurofoundry.preprocess.layout import Layout, beginnings, write_description
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.quality import MEASURES
from neurofoundry.preprocess.scan import FurtherResult, Job, Result, to_jobs
from neurofoundry.preprocess.verdict import (
    Narrow,
    decide,
    decide_further,
    find_overrides,
    narrow_bounds,
    read_overrides,
)
from neurofoundry.preprocess.workers import preprocess_jobs
from neurofoundry.runtime.files import atomic
from neurofoundry.runtime.log import LOGGER
from neurofoundry.runtime.progress import announced
from neurofoundry.runtime.stage import Workspace

KEPT = (nyul.LANDMARKS, ".key")
"""Files that are there before the scans are: the scale, and what tells whose the folder is."""
FEWEST_SCANS = 2
EXAMPLES = 6
"""Pictures that the tracker gets."""


def preprocess(
    work: Workspace, *, data: Path, cohort: Path, params: PreprocessParams, workers: int
) -> None:
    """Write a volume, its transform and its picture for every scan, and scans.tsv about them.

    A scan that cannot be used stays in the table, with the reason. Raises DataError when fewer
    than two can be used, and UsageError when a worker process is killed.
    """
    whole_cohort, contrasts = read_table(cohort / "scans.tsv", SCANS), read_contrasts(cohort)
    _check_contrasts(contrasts, params)
    decided = find_overrides(params, data)
    overrides = read_overrides(decided, whole_cohort) if decided else {}
    template = templates.find(params, data)
    fingerprint = templates.fingerprint(template)
    settings = scan_settings(params, fingerprint)

    standard: list[float] = []
    if params.normalization == "nyul":
        to_fit = to_jobs(nyul.scans_to_fit(whole_cohort), data=data, cohort=cohort)
        standard = nyul.standard_scale(
            work, to_fit, settings, params=params, template=template, workers=workers
        )
    else:
        (work.dir / nyul.LANDMARKS).unlink(missing_ok=True)

    scans = whole_cohort.iloc[work.shard.items]
    alternates = read_alternates(cohort)
    jobs = to_jobs(
        scans,
        data=data,
        cohort=cohort,
        begins=beginnings(whole_cohort),
        keys=_keys(scans, alternates, settings, str(standard), params, contrasts),
        alternates=alternates,
        contrasts=list(contrasts),
    )
    cache = ScanCache(work.dir, work.earlier, Layout.of(params))
    reused = cache.finished(jobs)
    results, seconds = dict(reused), {}
    for job, result, taken in preprocess_jobs(
        [job for job in jobs if job.scan_id not in reused],
        out=work.dir,
        params=params,
        template=template,
        standard=standard,
        workers=workers,
        before=list(reused.values()),
    ):
        results[job.scan_id], seconds[job.scan_id] = result, taken
    work.provisional = cache.passing(jobs)
    cache.remove_others(jobs, results, KEPT)

    with announced("scans.tsv and qc.html"):
        table = _join(scans, results, alternates, _volumes(jobs, results, cache.layout))
        table = decide(table, params, overrides, whole=work.shard.whole)
        table = decide_further(
            table,
            _of_contrasts(jobs, results, contrasts),
            params,
            overrides,
            _further_volumes(jobs, results, contrasts, cache.layout),
            required=[contrast for contrast, required in contrasts.items() if required],
        )
        if work.shard.whole:
            table = _without_copies(table, work.dir, params)
        table = label_images.carry(
            table, work.dir, data=data, cohort=cohort, params=params, workers=workers
        )
        work.provisional += label_images.passing(work.dir)
        narrow = narrow_bounds(table, params) if work.shard.whole else []
        write_record(work.dir, _record(params, fingerprint, standard, list(contrasts)))
        write_description(
            work.dir,
            params,
            template=fingerprint,
            raw=work.data_reference,
            data_version=work.data_version,
            without_volume=[
                cache.layout.result.format(job.stem)
                for job in jobs
                if not results[job.scan_id].volume_sha256
            ],
            contrasts=list(contrasts),
        )
        write_table(table, work.dir / "scans.tsv", VOLUMES)
        with atomic(work.dir / "qc.html") as page:
            html = report.render(table, work.dir, params, overrides, narrow, list(contrasts))
            page.write_text(html, encoding="utf-8")
    _log_further(table, list(contrasts))
    _warn(table, narrow, dict(zip(scans["scan_id"], scans["sha256"], strict=True)))
    work.tracker.pictures("qc", _examples(table, work.dir), step=0)
    work.summary |= _summarize(table, work)
    work.circumstances |= {"reused": len(reused), "seconds": seconds}


def _without_copies(table: pd.DataFrame, folder: Path, params: PreprocessParams) -> pd.DataFrame:
    """Return the table without copies under two names; list them and likely rescans."""
    similar = copies.find_similar(table, folder, params.grid)
    write_table(similar, folder / SIMILAR)
    for line in copies.describe(similar):
        LOGGER.warning("%s", line)
    return copies.refuse_copies(table, similar)


def _keys(
    scans: pd.DataFrame,
    alternates: pd.DataFrame,
    settings: str,
    standard: str,
    params: PreprocessParams,
    contrasts: Iterable[str],
) -> dict[str, str]:
    """Return the key of every scan. The bounds decide about one that has alternates, too.

    A session that lacks a contrast has the key that it has where nobody asks for that.
    """
    others = alternates.groupby("scan_id")["sha256"].agg(list).to_dict()
    bounds = params.quality.model_dump_json()
    hashes = [further("sha256", contrast) for contrast in contrasts if contrast != T1W]
    of_further = scans[hashes].to_dict("records")
    return {
        scan_id: make_key(
            sha256,
            settings,
            standard,
            *((*others[scan_id], bounds) if scan_id in others else ()),
            *(f"{name} {value}" for name, value in images.items() if pd.notna(value)),
        )
        for scan_id, sha256, images in zip(
            scans["scan_id"], scans["sha256"], of_further, strict=True
        )
    }


def _check_contrasts(contrasts: Iterable[str], params: PreprocessParams) -> None:
    further = [contrast for contrast in contrasts if contrast != T1W]
    if further and params.normalization != "zscore":
        raise UsageError(
            f"preprocess.normalization is {params.normalization}, which needs the white matter, or "
            f"the scale, of T1w images; the cohort has {', '.join(further)}, too. Set it to "
            "zscore, or ingest.contrasts to [T1w]."
        )


def _of_contrasts(
    jobs: Sequence[Job], results: Mapping[str, Result], contrasts: Iterable[str]
) -> dict[str, list[FurtherResult | None]]:
    """Return what became of each further contrast, in the order of the jobs."""
    return {
        contrast: [results[job.scan_id].further.get(contrast) for job in jobs]
        for contrast in contrasts
        if contrast != T1W
    }


def _further_volumes(
    jobs: Sequence[Job], results: Mapping[str, Result], contrasts: Iterable[str], layout: Layout
) -> dict[str, list[str | None]]:
    """Return the files of each further contrast, in the order of the jobs."""
    return {
        contrast: [
            layout.of_contrast(contrast)[0].format(job.stem)
            if each and each.volume_sha256
            else None
            for job, each in zip(jobs, of_jobs, strict=True)
        ]
        for contrast, of_jobs in _of_contrasts(jobs, results, contrasts).items()
    }


def _volumes(
    jobs: Sequence[Job], results: Mapping[str, Result], layout: Layout
) -> list[str | None]:
    """Return the file of each volume; None where there is none."""
    return [
        layout.volume.format(job.stem) if results[job.scan_id].volume_sha256 else None
        for job in jobs
    ]


def _join(
    scans: pd.DataFrame,
    results: Mapping[str, Result],
    alternates: pd.DataFrame,
    volumes: Sequence[str | None],
) -> pd.DataFrame:
    """Return the cohort with the results beside it, in the order of the cohort.

    Where an alternate stands in, ``path`` and ``sha256`` are its own.
    """
    ordered = [results[scan_id] for scan_id in scans["scan_id"]]
    paths = alternates.set_index(["scan_id", "sha256"])["path"].to_dict()
    used = [
        (paths.get((scan_id, result.sha256), path), result.sha256 or sha256)
        for scan_id, path, sha256, result in zip(
            scans["scan_id"], scans["path"], scans["sha256"], ordered, strict=True
        )
    ]

    def column(values: Sequence[Any], dtype: type) -> pd.Series[Any]:
        return pd.Series(values, index=scans.index, dtype=dtype)

    return scans.assign(
        path=[path for path, _ in used],
        sha256=[sha256 for _, sha256 in used],
        reason=column([result.reason for result in ordered], object),
        volume=column(volumes, object),
        volume_sha256=column([result.volume_sha256 for result in ordered], object),
        sketch=column([result.sketch for result in ordered], object),
        **{
            name: column([result.measures.get(name) for result in ordered], float)
            for name in MEASURES
        },
    )


def _record(
    params: PreprocessParams,
    fingerprint: Mapping[str, str],
    standard: Sequence[float],
    contrasts: Sequence[str],
) -> VolumesRecord:
    without = set() if contrasts[1:] else {"coregistration"}  # which then decides nothing
    scale = f" at {' '.join(f'{value:g}' for value in standard)}" if standard else ""
    return VolumesRecord(
        grid=params.grid.describe(),
        normalization=params.normalization + scale,
        contrasts=tuple(contrasts) if contrasts[1:] else None,
        params=params.model_dump(mode="json", exclude=without),
        **fingerprint,
    )


def _examples(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Return pictures of some scans, up to a third of them of scans that cannot be used."""
    drawn = table[table["volume"].notna()]
    failed = drawn["volume"][~drawn["usable"]].head(EXAMPLES // 3)
    shown = drawn["volume"][drawn["usable"]].head(EXAMPLES - len(failed))
    return [folder / picture_of(volume) for volume in [*shown, *failed]]


def _warn(table: pd.DataFrame, narrow: Sequence[Narrow], chosen: Mapping[str, str]) -> None:
    """Log what needs a look at qc.html, where the sites' names are."""
    for bound in narrow:
        LOGGER.warning("At one site %s.", bound.describe())
    if stand_ins := (table["sha256"] != table["scan_id"].map(chosen)).sum():
        LOGGER.info(
            "%d scans are other images of their sessions, as the first failed quality control; "
            "path and sha256 in scans.tsv are theirs.",
            stand_ins,
        )
    lacking = report.unmeasured(table, "ghosting")
    if lacking:
        LOGGER.info(
            "Motion could not be measured in %d of %d scans: too little air is in view, or a "
            "program has blanked it.",
            lacking,
            len(table),
        )


def _log_further(table: pd.DataFrame, contrasts: Sequence[str]) -> None:
    for contrast in contrasts[1:]:
        there = table[further("volume", contrast)].notna()
        LOGGER.info(
            "%s: %d of %d scans have a volume; %s in scans.tsv says why others have none",
            contrast,
            int(there.sum()),
            len(table),
            further("reason", contrast),
        )


def _summarize(table: pd.DataFrame, work: Workspace) -> dict[str, Any]:
    """Count scans and faults. Raises DataError where too few of a whole cohort can be used."""
    usable = int(table["usable"].sum())
    faults = Counter(reason.partition(":")[0] for reason in table["reason"].dropna())
    if usable < FEWEST_SCANS and work.shard.whole:
        counts = ", ".join(f"{count} × {fault}" for fault, count in sorted(faults.items()))
        raise DataError(
            f"{usable} of {len(table)} scans can be used, at least {FEWEST_SCANS} are needed. "
            f"Not usable: {counts or 'none'}. Pictures and measures: {work.dir / 'qc.html'}. Fix "
            "the scans, or widen the bounds of preprocess.quality."
        )
    return {"scans": len(table), "usable": usable, "faults": faults}
