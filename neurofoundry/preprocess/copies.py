"""One brain under two names: copies are set aside, likely scans of one person are listed.

Ingest knows copies by equal voxels alone; a changed voxel, another scale, an export or a defacing
hides them from it. Here brains are compared in the standard space. Sketches of all brains are
compared with each other, and the brains themselves where their sketches are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neurofoundry.contracts.sketches import COPY, REMEDY, SAME_PERSON, detail, pairs, unit_rows
from neurofoundry.contracts.volumes import Grid, open_volume
from neurofoundry.errors import counted

_MARGIN = 0.1
"""How far sketches may underestimate likely scans of one person: three standard errors."""


def find_similar(table: pd.DataFrame, folder: Path, grid: Grid) -> pd.DataFrame:
    """Return the pairs of usable scans of different persons that may show one brain.

    Columns: ``scan_id``, ``other`` and ``correlation`` of the detail of their brains, at least
    `SAME_PERSON`; a copy has at least `COPY`.
    """
    known = table[table["usable"] & table["sketch"].notna()]
    ids, persons = known["scan_id"].tolist(), known["person"].tolist()

    @cache
    def brain(row: int) -> NDArray[np.float32]:
        return detail(open_volume(folder / known["volume"].iloc[row], grid))

    alike = pairs(unit_rows(known["sketch"].tolist()), SAME_PERSON - _MARGIN) if ids else []
    measured = [
        (ids[one], ids[other], float(brain(one) @ brain(other)))
        for one, other in alike
        if persons[one] != persons[other]
    ]
    similar = [pair for pair in measured if pair[2] >= SAME_PERSON]
    return pd.DataFrame(similar, columns=["scan_id", "other", "correlation"])


def refuse_copies(table: pd.DataFrame, similar: pd.DataFrame) -> pd.DataFrame:
    """Return the table without the copies that two persons have, but for those kept by hand.

    There is no telling whose image it is, and one of them might be trained on and the other tested.
    """
    copied = similar[similar["correlation"] >= COPY]
    others = dict(zip(copied["other"], copied["scan_id"], strict=True))
    others |= dict(zip(copied["scan_id"], copied["other"], strict=True))
    reasons = [
        f"duplicate: the same image as {others[scan_id]}, of another person, or a rescan on the "
        f"same scanner (correlation of at least {COPY:g}). Only one name can be right: remove the "
        "other, give both scans one subject, or keep it by hand"
        if scan_id in others and usable and decision != "keep"
        else reason
        for scan_id, usable, decision, reason in zip(
            *(table[name] for name in ("scan_id", "usable", "qc_decision", "reason")), strict=True
        )
    ]
    found = pd.Series(reasons, index=table.index, dtype=object)
    return table.assign(usable=table["usable"] & found.isna(), reason=found)


def describe(similar: pd.DataFrame) -> Sequence[str]:
    """Return what people should know of similar scans, line by line."""
    copies = int((similar["correlation"] >= COPY).sum())
    lines = []
    if copies:
        lines.append(
            f"{counted(copies, 'pair')} of scans: copies under two names, which are set aside"
        )
    if rest := len(similar) - copies:
        lines.append(
            f"{counted(rest, 'pair')} of scans under two names: each is likely to show one person, "
            f"who may then be learned from and tested: {REMEDY}"
        )
    return [f"{line}. See similar.tsv" for line in lines]
