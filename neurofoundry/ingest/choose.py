"""Of all images that can be read: which one speaks for a session, and which are copies.

- The same image under two persons: all copies are excluded, as nobody can know whose it is.
- Several T1w in a session: the one of the lowest rank, as the reader of the dataset has it.
- The same image in two sessions of a person: the first is kept.

Copies are found by voxel values, so that packing an image anew does not hide it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from neurofoundry.ingest.scan import Findings, Scan, natural


def choose(scans: Iterable[Scan], found: Findings) -> list[Scan]:
    """The scans of the cohort, ordered by ``scan_id``; the others go to ``found.excluded``."""
    scans = sorted(scans, key=_order)
    scans = _of_one_person(scans, found)
    scans = _one_a_session(scans, found)
    scans = _first_copies(scans, found)
    return sorted(scans, key=lambda scan: scan.scan_id)


def _order(scan: Scan) -> tuple[object, ...]:
    return scan.dataset, natural(scan.subject), natural(scan.session), scan.source, scan.rank


def _of_one_person(scans: list[Scan], found: Findings) -> list[Scan]:
    copies: dict[str, list[Scan]] = {}
    for scan in scans:
        copies.setdefault(scan.content, []).append(scan)
    kept = []
    for scan in scans:
        others = [other for other in copies[scan.content] if other.person != scan.person]
        if others:
            found.exclude(
                scan.dataset,
                scan.origin,
                f"duplicate: the same image as {others[0].origin}, of another person; nobody can "
                "know whose it is. Remove the wrong one",
            )
        else:
            kept.append(scan)
    return kept


def _one_a_session(scans: list[Scan], found: Findings) -> list[Scan]:
    kept = []
    for _, session in groupby(scans, key=lambda scan: (scan.dataset, scan.subject, scan.session)):
        best, *others = session
        kept.append(best)
        for other in others:
            found.exclude(
                other.dataset,
                other.origin,
                f"several T1w: {best.origin.rpartition('/')[2]} of the same session is used",
            )
    return kept


def _first_copies(scans: list[Scan], found: Findings) -> list[Scan]:
    first: dict[str, Scan] = {}
    kept = []
    for scan in scans:
        if first.setdefault(scan.content, scan) is scan:
            kept.append(scan)
        else:
            found.exclude(
                scan.dataset,
                scan.origin,
                f"duplicate: the same image as {first[scan.content].origin}, of the same person",
            )
    return kept
