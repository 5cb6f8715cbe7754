"""Which image represents a session, and which are copies of another.

- The same image under two persons: all copies are excluded, as there is no telling whose it is.
- Several T1w in a session: the one of the lowest rank, as the reader of the dataset ranks them. The
  others may stand in where it fails quality control. Of any other contrast they do not.
- The same image in two sessions of a person: the first is kept.

Copies are recognized by voxel values, so that compressing an image anew does not hide them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from neurofoundry.contracts.cohort import T1W
from neurofoundry.ingest.scan import Findings, Scan, natural_key


def choose(scans: Iterable[Scan], findings: Findings) -> list[Scan]:
    """Return the best image of each session and contrast, ordered by ``scan_id``, T1w first; the
    others are excluded."""
    candidates = sorted(scans, key=_order)
    candidates = _without_shared_images(candidates, findings)
    candidates = _one_per_session(candidates, findings)
    candidates = _first_copies(candidates, findings)
    candidates = _without_useless_others(candidates)
    return sorted(candidates, key=lambda scan: (scan.scan_id, _contrast_order(scan)))


def _contrast_order(scan: Scan) -> tuple[bool, str]:
    return scan.contrast != T1W, scan.contrast


def _order(scan: Scan) -> tuple[object, ...]:
    return (
        scan.dataset,
        natural_key(scan.subject),
        natural_key(scan.session),
        _contrast_order(scan),
        scan.source,
        scan.rank,
    )


def _without_shared_images(scans: list[Scan], findings: Findings) -> list[Scan]:
    """Exclude every image that two persons have."""
    copies: dict[str, list[Scan]] = {}
    for scan in scans:
        copies.setdefault(scan.content, []).append(scan)
    kept = []
    for scan in scans:
        others = [copy for copy in copies[scan.content] if copy.person != scan.person]
        if others:
            findings.exclude(
                scan.dataset,
                scan.origin,
                f"duplicate: the same image as {others[0].origin}, of another person. Only one of "
                "them can be right: remove the other",
            )
        else:
            kept.append(scan)
    return kept


def _one_per_session(scans: list[Scan], findings: Findings) -> list[Scan]:
    """Keep the scan of the lowest rank in every session and contrast; ``scans`` are in order."""
    kept = []
    for _, session in groupby(
        scans, key=lambda scan: (scan.dataset, scan.subject, scan.session, scan.contrast)
    ):
        best, *others = session
        stand_in = best.contrast == T1W
        kept.append(replace(best, others=tuple(others) if stand_in else ()))
        instead = "; this one stands in if that fails quality control" if stand_in else ""
        for other in others:
            findings.exclude(
                other.dataset,
                other.origin,
                f"several {best.contrast}: {best.origin.rpartition('/')[2]} of the same session is "
                f"used{instead}",
            )
    return kept


def _first_copies(scans: list[Scan], findings: Findings) -> list[Scan]:
    """Keep the first of the copies of an image that one person has."""
    first: dict[str, Scan] = {}
    kept = []
    for scan in scans:
        if first.setdefault(scan.content, scan) is scan:
            kept.append(scan)
        else:
            findings.exclude(
                scan.dataset,
                scan.origin,
                f"duplicate: the same image as {first[scan.content].origin}, of the same person",
            )
    return kept


def _without_useless_others(scans: list[Scan]) -> list[Scan]:
    """Let no image stand in that is in the cohort already."""
    used = {scan.content for scan in scans}
    return [
        replace(scan, others=tuple(other for other in scan.others if other.content not in used))
        for scan in scans
    ]
