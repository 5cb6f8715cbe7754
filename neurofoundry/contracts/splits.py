"""Splits by person, and the guard against leakage between them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import PretrainedOn
from neurofoundry.errors import DataError
from neurofoundry.params import Section


class Splits(Section):
    """How persons are assigned to splits. The shares of pretrain to test sum to 1."""

    pretrain: float = Field(gt=0, le=1)
    train: float = Field(ge=0, le=1)
    val: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)
    ood: dict[Literal["dataset", "site"], tuple[str, ...]] = Field(default_factory=dict)
    """Whole datasets or sites that are kept apart: no choice uses them, only the evaluation."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Splits:
        total = self.pretrain + self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"pretrain + train + val + test is {total:g}, expected 1")
        return self

    def assign(self, person: str, *, seed: int) -> str:
        """Return the split of a person, a function of the person and the seed alone.

        So adding subjects moves nobody, and every site and label is split in the same expected
        shares. Exact shares in every stratum would depend on the other persons.
        """
        digest = hashlib.sha256(f"{seed}\0{person}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        for name in ("pretrain", "train", "val"):
            position -= getattr(self, name)
            if position < 0:
                return name
        return "test"


@dataclass(frozen=True)
class Leak:
    """A person or an image that is in more than one split."""

    subject: str
    """What leaks, in words: a person or an image."""
    splits: tuple[str, ...]
    scans: tuple[str, ...]


def find_leaks(scans: pd.DataFrame) -> list[Leak]:
    """Return the persons and the identical images that are in more than one split."""
    leaks = []
    for column, noun in (("person", "the subject"), ("sha256", "the image")):
        counts = scans.groupby(column)["split"].nunique()
        for key in counts.index[counts > 1]:
            rows = scans[scans[column] == key]
            label = key if column == "person" else key[:12]
            leaks.append(
                Leak(f"{noun} {label}", tuple(sorted(set(rows["split"]))), tuple(rows["scan_id"]))
            )
    return leaks


NOTHING_SEEN = PretrainedOn()


def guard_leaks(scans: pd.DataFrame, *, pretrained: PretrainedOn = NOTHING_SEEN) -> None:
    """Raise DataError if a person or image is in two splits, or was pretrained on and is tested."""
    leaks = [
        f"{leak.subject} is in {' and '.join(leak.splits)}: {', '.join(leak.scans)}"
        for leak in find_leaks(scans)
    ]
    held_out = scans[scans["split"].isin(HELD_OUT)]
    leaks += [
        f"the subject {person} was pretrained on and is in val, test or ood"
        for person in pretrained.among(held_out["person"])
    ]
    leaks += [
        f"the image of {scan.scan_id} was pretrained on, under this or another name, and is in "
        f"{scan.split}"
        for scan in held_out[held_out["sha256"].isin(pretrained.images or ())].itertuples()
    ]
    if leaks:
        shown = "\n  ".join(leaks[:20]) + ("\n  …" if len(leaks) > 20 else "")
        raise DataError(
            f"Leakage: {len(leaks)} subjects or images would be seen in training and in "
            f"evaluation:\n  {shown}\nGive each person one split, or remove the duplicates."
        )
