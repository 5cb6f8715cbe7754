"""Splits by person, and the guard against leakage between them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pandas as pd
from pydantic import Field, field_validator, model_validator

from neurofoundry.contracts.cohort import HELD_OUT
from neurofoundry.contracts.encoder import PretrainedOn
from neurofoundry.contracts.sketches import COPY, nearest, unit_rows
from neurofoundry.errors import DataError
from neurofoundry.params import Section

Mode = Literal["hash", "stratified", "published", "folds"]

SHARES = ("pretrain", "train", "val", "test")
"""The splits that persons are dealt to by share."""

_EFFECTIVE: dict[Mode, tuple[str, ...]] = {
    "hash": SHARES,
    "stratified": SHARES,
    "published": (*SHARES, "column", "file", "values"),
    "folds": ("pretrain", "folds", "repeats"),
}
"""The keys that have an effect in each mode, beside ``ood``."""


class Splits(Section):
    """How persons are assigned to splits.

    `docs/data.md` says which mode serves which study.
    """

    mode: Mode = "hash"
    """hash: by a hash of seed and person, so that adding persons moves nobody. stratified: balanced
    over the classes of the tasks, site, sex and age; adding persons moves others. published: the
    splits that the data came with. folds: cross-validation, stratified; everybody outside pretrain
    and ood is tested."""
    pretrain: float | None = Field(default=None, ge=0, le=1)
    """Share of the persons that serve pretraining alone; none by default."""
    train: float | None = Field(default=None, ge=0, le=1)
    """Shares of pretrain to test sum to 1. published: of the persons without a published split, who
    serve pretraining alone if there are no shares."""
    val: float | None = Field(default=None, ge=0, le=1)
    test: float | None = Field(default=None, ge=0, le=1)
    column: str | None = None
    """published: the column that holds the splits, of the datasets' tables, or of `file` (there
    `split` by default)."""
    file: str | None = None
    """published: a table below the data root with a row a person: `participant_id` or `subject`,
    the split, and `dataset` where two datasets use the same label."""
    values: dict[Literal["pretrain", "train", "val", "test", "ood"], tuple[str, ...]] = Field(
        default_factory=dict
    )
    """published: our split to their words for it, in any case; `training`, `validation`, `valid`
    and `testing` are known."""
    folds: int | None = Field(default=None, ge=3, le=20)
    """folds: how many. Each in turn is tested, the next one validates, the others train."""
    repeats: int | None = Field(default=None, ge=1, le=20)
    """folds: how often persons are dealt to folds anew; once by default."""
    ood: dict[Literal["dataset", "site"], tuple[str, ...]] = Field(default_factory=dict)
    """Whole datasets or sites that are kept apart, in every mode and whatever is published: no
    choice uses them, only the evaluation."""

    @field_validator("file")
    @classmethod
    def _below_the_root(cls, file: str | None) -> str | None:
        parts = PurePosixPath(file or "")
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError("expected a path below the data root, without '..'")
        return file

    @model_validator(mode="after")
    def _complete(self) -> Splits:
        effective = {"mode", "ood", *_EFFECTIVE[self.mode]}
        for name, value in self:
            if name not in effective and value:
                raise ValueError(f"{name} has no effect with mode {self.mode}. Remove it")
        if self.mode == "folds":
            if self.folds is None:
                raise ValueError("mode folds needs folds, such as 5")
            if self.pretrain == 1:
                raise ValueError("pretrain is 1: nobody is left for the folds")
        elif self.mode != "published" or self.dealt:
            self._check_shares()
        if self.mode == "published" and not (self.column or self.file):
            raise ValueError("mode published needs a column of the datasets' tables, or a file")
        return self

    def _check_shares(self) -> None:
        missing = [name for name in ("train", "val", "test") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"mode {self.mode} needs a share for {', '.join(missing)}")
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            total = sum(self.shares.values())
            raise ValueError(f"pretrain + train + val + test is {total:g}, expected 1")

    @property
    def dealt(self) -> bool:
        """Whether any share is given."""
        return any(getattr(self, name) is not None for name in SHARES)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each split; of folds, that of pretrain and of each fold, '1' and on."""
        if self.mode == "folds":
            alone, count = self.pretrain or 0.0, self.folds or 1
            each = (1 - alone) / count
            return {"pretrain": alone} | {str(fold + 1): each for fold in range(count)}
        return {name: getattr(self, name) or 0.0 for name in SHARES}

    @property
    def rounds(self) -> int:
        """How many models each run of fine-tuning makes: one a fold of every repeat, else one."""
        return (self.folds or 1) * (self.repeats or 1)

    def assign(self, person: str, *, seed: int) -> str:
        """Return the split of a person by hash, a function of the person and the seed alone.

        So adding subjects moves nobody, and every site and label is split in the same expected
        shares. Exact shares in every stratum would depend on the other persons.
        """
        digest = hashlib.sha256(f"{seed}\0{person}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        for name in ("pretrain", "train", "val"):
            position -= self.shares[name]
            if position < 0:
                return name
        return "test"


@dataclass(frozen=True)
class Leak:
    """A person or an image that is in more than one split, or fold."""

    subject: str
    """What leaks, in words: a person or an image."""
    splits: tuple[str, ...]
    scans: tuple[str, ...]


def find_leaks(scans: pd.DataFrame) -> list[Leak]:
    """Return the persons and the identical images that are in more than one split."""
    leaks = []
    for column, noun in (("person", "the subject"), ("sha256", "the image")):
        place = scans["split"] + (" " + scans["fold"].fillna("") if "fold" in scans else "")
        counts = place.groupby(scans[column]).nunique()
        for key in counts.index[counts > 1]:
            rows = scans[scans[column] == key]
            label = key if column == "person" else key[:12]
            leaks.append(
                Leak(
                    f"{noun} {label}", tuple(sorted(set(place[rows.index]))), tuple(rows["scan_id"])
                )
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
    leaks += _copies_of(pretrained, held_out)
    if leaks:
        shown = "\n  ".join(leaks[:20]) + ("\n  …" if len(leaks) > 20 else "")
        raise DataError(
            f"Leakage: {len(leaks)} subjects or images would be seen in training and in "
            f"evaluation:\n  {shown}\n{_remedy(scans, pretrained)}"
        )


def _copies_of(pretrained: PretrainedOn, held_out: pd.DataFrame) -> list[str]:
    """Return, in words, the scans that are copies of images under other hashes."""
    if not pretrained.sketches or "sketch" not in held_out:
        return []
    known = held_out[held_out["sketch"].notna() & ~held_out["sha256"].isin(pretrained.images or ())]
    if known.empty:
        return []
    cosines = nearest(unit_rows(known["sketch"].tolist()), unit_rows(pretrained.sketches))
    return [
        f"a copy of the image of {scan.scan_id} (correlation {cosine:.2f}) was pretrained on, and "
        f"it is in {scan.split}"
        for scan, cosine in zip(known.itertuples(), cosines, strict=True)
        if cosine >= COPY
    ]


def _remedy(scans: pd.DataFrame, pretrained: PretrainedOn) -> str:
    if "fold" in scans and pretrained is not NOTHING_SEEN:
        return (
            "In a cross-validation everybody is tested. Pretrain on others: give some a place of "
            "their own (ingest.splits.pretrain: 0.2, pretrain.splits: [pretrain]), or import an "
            "encoder from elsewhere (`neurofoundry import`)."
        )
    return "Give each person one split, or remove the duplicates."
