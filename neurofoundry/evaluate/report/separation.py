"""What was looked at to keep the tested apart from those learned from, and what it found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neurofoundry.contracts.sketches import COPY, REMEDY, SIMILAR
from neurofoundry.errors import counted
from neurofoundry.evaluate.inputs import Inputs


def describe(inputs: Inputs, volumes: Path) -> list[str]:
    """Return it in sentences: between splits, against pretraining, and what stays unknown."""
    return [
        sentence
        for sentence in (
            _by_name_and_bytes(inputs),
            _by_brain(inputs, _similar(volumes)),
            _pretraining(inputs),
        )
        if sentence
    ]


def _by_name_and_bytes(inputs: Inputs) -> str:
    crossed = " of a fold" if "fold" in inputs.scans and inputs.scans["fold"].notna().any() else ""
    return f"By name, and by the bytes of the image files, nobody is in two splits{crossed}."


def _similar(volumes: Path) -> pd.DataFrame | None:
    path = volumes / SIMILAR
    return pd.read_csv(path, sep="\t", dtype={0: str, 1: str}) if path.exists() else None


def _by_brain(inputs: Inputs, similar: pd.DataFrame | None) -> str:
    """Return what comparing the brains themselves has shown, between different splits."""
    usable = inputs.scans[inputs.scans["usable"]]
    seen = int(usable["sketch"].notna().sum()) if "sketch" in usable else 0
    if similar is None or not seen:
        return (
            "The brains themselves were not compared: a person under two names whose files differ "
            "would not be noticed."
        )
    text = f"The brains of {seen} of {len(usable)} usable scans were compared with each other: "
    copies = int((similar["correlation"] >= COPY).sum())
    text += (
        f"{counted(copies, 'pair')} under two names looked like copies of one "
        "image, and were set aside unless kept by hand; "
        if copies
        else "no two under different names look like copies of one image; "
    )
    across = _across(usable, similar)
    if not across:
        return f"{text}no two in different splits look like one person under two names."
    pairs = "pair in different splits is" if across == 1 else "pairs in different splits are"
    return (
        f"{text}{across} {pairs} likely to be one person under two names (volumes/{SIMILAR}), and "
        f"results may be too good: {REMEDY}."
    )


def _across(usable: pd.DataFrame, similar: pd.DataFrame) -> int:
    """Return how many pairs of usable scans that look like one person are in different splits."""
    place = usable["split"] + (" " + usable["fold"].fillna("") if "fold" in usable else "")
    of = pd.Series(place.to_numpy(), usable["scan_id"])
    one, other = (of.reindex(similar[column]).to_numpy() for column in ("scan_id", "other"))
    known = pd.notna(one) & pd.notna(other)
    return int((known & (one != other)).sum())


def _pretraining(inputs: Inputs) -> str:
    """Return against what the held-out persons were compared with those pretrained on."""
    listed = [each for each in inputs.encoders if each.seen.persons is not None]
    text = ""
    if listed:
        images = all(each.seen.images is not None for each in listed)
        brains = all(each.seen.sketches for each in listed)
        by = ["name", *(["image file"] if images else []), *(["brain"] if brains else [])]
        how = by[0] if len(by) == 1 else f"{', '.join(by[:-1])} and {by[-1]}"
        count = len(inputs.pretrained_on)
        text = f"By {how}, none of those held out is among the {count} subjects pretrained on."
    unknown = [each.name for each in inputs.encoders if each.seen.persons is None]
    if unknown:
        text += (
            f" Unknown for {', '.join(unknown)}: these weights came without a list of their "
            "pretraining subjects, so that held-out subjects may be among them."
        )
    return text.strip()
