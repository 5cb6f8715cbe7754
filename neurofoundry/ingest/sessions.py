"""Joins the contrasts of a session to its T1w image, by which it is placed.

A contrast in a session without a T1w image is not used; neither is a session that lacks a contrast
which none may lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from neurofoundry.contracts.cohort import CONTRASTS, T1W, further
from neurofoundry.contracts.tables import write_table
from neurofoundry.ingest.params import IngestParams
from neurofoundry.ingest.scan import Findings, Scan
from neurofoundry.runtime.log import LOGGER

ELSEWHERE = (
    ". Another session of this person has one: if both are of one visit, give them one session, or "
    "name both in a row of a table (columns path and path_CONTRAST)"
)


def join(scans: Sequence[Scan], params: IngestParams, findings: Findings) -> list[Scan]:
    """Return the T1w images of ``scans`` (`choose`) with the further contrasts of their sessions;
    the others are excluded."""
    others: dict[str, list[Scan]] = {}
    for scan in scans:
        if scan.contrast != T1W:
            others.setdefault(scan.scan_id, []).append(scan)
    sessions = []
    for scan in scans:
        if scan.contrast == T1W:
            found = others.pop(scan.scan_id, [])
            if lacking := _lacking(found, params):
                _exclude(scan, found, lacking, findings)
            else:
                sessions.append(replace(scan, further=tuple(found)))
    with_t1w = {scan.person for scan in scans if scan.contrast == T1W}
    for alone in (scan for found in others.values() for scan in found):
        reason = "no T1w: the session has none that can be used, and so no place for this image"
        elsewhere = alone.person in with_t1w
        findings.exclude(alone.dataset, alone.origin, reason + ELSEWHERE * elsewhere)
    _log(sessions, params)
    return sessions


def add_columns(
    rows: pd.DataFrame, scans: Sequence[Scan], contrasts: Sequence[str]
) -> pd.DataFrame:
    """Return the rows of ``scans`` with the path and the hash of every further contrast."""
    for contrast in contrasts[1:]:
        found = [next((s for s in scan.further if s.contrast == contrast), None) for scan in scans]
        for column in ("path", "sha256"):
            values = [each and getattr(each, column) for each in found]
            series = pd.Series(values, index=rows.index, dtype=object)
            rows = rows.assign(**{further(column, contrast): series})
    return rows


def write_contrasts(params: IngestParams, folder: Path) -> None:
    """Write contrasts.tsv."""
    required = ["no" if c in params.optional_contrasts else "yes" for c in params.contrasts]
    table = pd.DataFrame({"contrast": list(params.contrasts), "required": required})
    write_table(table, folder / "contrasts.tsv", CONTRASTS)


def _lacking(found: Sequence[Scan], params: IngestParams) -> list[str]:
    """Return the contrasts that a session needs and has not."""
    there = {T1W, *params.optional_contrasts, *(scan.contrast for scan in found)}
    return [contrast for contrast in params.contrasts if contrast not in there]


def _exclude(scan: Scan, found: Sequence[Scan], lacking: Sequence[str], findings: Findings) -> None:
    names = " and no ".join(lacking)
    optional = ", ".join(lacking)
    for image in (scan, *found):
        findings.exclude(
            image.dataset,
            image.origin,
            f"no {names}: the session has none that can be used. ingest.optional_contrasts: "
            f"[{optional}] keeps such sessions",
        )


def _log(sessions: Sequence[Scan], params: IngestParams) -> None:
    for contrast in params.contrasts[1:]:
        count = sum(any(s.contrast == contrast for s in scan.further) for scan in sessions)
        LOGGER.info("%s: %d of %d sessions have one", contrast, count, len(sessions))
