"""The scans table: its schema, subject-level splits, the leakage guard, and what a task needs.

A **person** is who was scanned; a **subject** is a label within a dataset. Everything that must
not leak (splits, intervals, pretraining overlap) goes by person.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from neurofoundry.errors import DataError
from neurofoundry.params import Section

SPLITS = ("pretrain", "train", "val", "test", "ood")

_SHA256 = pa.Check.str_matches(r"^[0-9a-f]{64}$")

SCANS = pa.DataFrameSchema(
    {
        "scan_id": pa.Column(str, pa.Check.str_matches(r"^[A-Za-z0-9_-]+$"), unique=True),
        "dataset": pa.Column(str),
        "subject": pa.Column(str),
        "session": pa.Column(str),
        "person": pa.Column(str),
        "source": pa.Column(str, pa.Check.isin(["bids", "dicom", "table"])),
        "path": pa.Column(str),
        "sha256": pa.Column(str, _SHA256),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "age": pa.Column(float, pa.Check.in_range(0, 120), nullable=True),
        "sex": pa.Column(str, pa.Check.isin(["F", "M"]), nullable=True),
        "site": pa.Column(str),
        "scanner": pa.Column(str, nullable=True),
        "field_strength": pa.Column(float, pa.Check.gt(0), nullable=True),
    },
    coerce=True,
    strict=False,  # the label columns that params.yaml declares follow
)
"""cohort/scans.tsv: one row a usable T1w scan. ``age`` in years, ``field_strength`` in tesla.
``path`` is relative to the data root, or to the cohort folder where ``source`` is dicom."""

VOLUMES = SCANS.add_columns(
    {
        "usable": pa.Column(bool),
        "reason": pa.Column(str, nullable=True),
        "volume_sha256": pa.Column(str, _SHA256, nullable=True),
    }
)
"""volumes/scans.tsv: the cohort and, for every scan, whether its volume can be used and why not.
Measures of quality follow as further columns."""

EXCLUDED = pa.DataFrameSchema(
    {"dataset": pa.Column(str), "path": pa.Column(str), "reason": pa.Column(str)}, coerce=True
)
"""cohort/excluded.tsv: every file that was not used."""

SUBJECTS = pa.DataFrameSchema({"person": pa.Column(str)}, coerce=True)
"""subjects.tsv of an encoder: everyone it was pretrained on. Encoders from elsewhere may have none:
then whom they have seen is unknown."""

HASHED_SUBJECTS = pa.DataFrameSchema(
    {"person_hash": pa.Column(str, _SHA256), "salt": pa.Column(str)}, coerce=True
)
"""subjects.tsv of an encoder that was exported: `hash_person` of everyone."""

IMAGES = pa.DataFrameSchema({"sha256": pa.Column(str, _SHA256)}, coerce=True)
"""images.tsv of an encoder: every image it was pretrained on. Encoders from elsewhere may have
none: then leakage can only be seen by name."""


def read_table(path: Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Read a contract table, checked. 'n/a' is a missing value, as in BIDS."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the table cannot be read ({error}).") from error
    if "usable" in table:
        table["usable"] = table["usable"].map({"true": True, "false": False})
    return _check(table, schema, path)


def write_table(table: pd.DataFrame, path: Path, schema: pa.DataFrameSchema | None = None) -> None:
    """Write a tab-separated table, checked, as a whole or not at all."""
    if schema is not None:
        table = _check(table, schema, path)
    for column in table.columns[[dtype.kind == "b" for dtype in table.dtypes]]:
        table = table.assign(**{column: table[column].map({True: "true", False: "false"})})
    temporary = path.with_name(f".{path.name}.tmp")
    table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.10g")
    temporary.replace(path)


def _check(table: pd.DataFrame, schema: pa.DataFrameSchema, path: Path) -> pd.DataFrame:
    try:
        return schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        first = error.failure_cases.iloc[0]
        raise DataError(
            f"{path}: {len(error.failure_cases)} values break the table's contract; the first: "
            f"column '{first['column'] or first['failure_case']}', row {first['index']}, "
            f"found {first['failure_case']!r}, expected {first['check']}."
        ) from error


def scan_path(scan: Mapping[str, str], *, data: Path, cohort: Path) -> Path:
    """Where the image of a row of scans.tsv lies."""
    return (cohort if scan["source"] == "dicom" else data) / scan["path"]


class Condition(Section):
    """What a column must hold for a scan to take part. A missing value never does."""

    min: float | None = None
    max: float | None = None
    one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Condition:
        numeric = self.min is not None or self.max is not None
        if numeric == (self.one_of is not None):
            raise ValueError("give either min and/or max, or one_of")
        return self

    def holds(self, values: pd.Series) -> pd.Series:
        if self.one_of is not None:
            return values.astype("string").isin(self.one_of)
        numbers = pd.to_numeric(values, errors="coerce")
        low = -np.inf if self.min is None else self.min
        return numbers.between(low, np.inf if self.max is None else self.max)


class Task(Section):
    """Something to predict from a scan: declared in params.yaml, never in code."""

    kind: Literal["classification", "regression"]
    column: str
    """The column of scans.tsv that holds the label."""
    classes: tuple[str, ...] = ()
    """Classification: the values of the column, the one of interest last."""
    eligible: dict[str, Condition] = Field(default_factory=dict)
    """Column to condition: which scans take part."""
    min_subjects: int = Field(default=2, ge=1)
    """Subjects that each of train, val, test (and ood, if the cohort has one) must have; for
    classification, of every class."""
    required: bool = True
    """Refuse a cohort that cannot serve the task (exit 3), or report it as not estimable."""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError("a class stands twice")
        return classes

    @model_validator(mode="after")
    def _kind_and_classes_agree(self) -> Task:
        if self.kind == "classification" and len(self.classes) < 2:
            raise ValueError("a classification needs at least two classes")
        if self.kind == "regression" and self.classes:
            raise ValueError("a regression has no classes")
        return self

    def select(self, scans: pd.DataFrame) -> pd.DataFrame:
        """The scans that take part: eligible and labelled."""
        missing = sorted({self.column, *self.eligible} - set(scans.columns))
        if missing:
            return scans.iloc[:0]
        chosen = self._labels(scans).notna()
        for column, condition in self.eligible.items():
            chosen &= condition.holds(scans[column])
        return scans[chosen]

    def targets(self, scans: pd.DataFrame) -> NDArray[np.float64]:
        """Labels of selected scans: the index of the class, or the value."""
        return self._labels(scans).to_numpy(np.float64)

    def _labels(self, scans: pd.DataFrame) -> pd.Series:
        values = scans[self.column]
        if self.kind == "regression":
            return pd.to_numeric(values, errors="coerce")
        return values.map({name: index for index, name in enumerate(self.classes)})

    def gap(self, scans: pd.DataFrame) -> str | None:
        """Why these scans cannot serve the task, in words; None when they can."""
        for column in (self.column, *self.eligible):
            if column not in scans:
                return f"no dataset has the column '{column}'"
        chosen = self.select(scans)
        needed = ["train", "val", "test"] + (["ood"] if (scans["split"] == "ood").any() else [])
        for split in needed:
            part = chosen[chosen["split"] == split]
            groups = {
                f"{self.column}={name}": part[part[self.column] == name] for name in self.classes
            }
            for group, rows in (groups or {"a label": part}).items():
                found = rows["person"].nunique()
                if found < self.min_subjects:
                    return (
                        f"split '{split}' has {found} subjects with {group}, "
                        f"{self.min_subjects} are needed"
                    )
        return None


class Splits(Section):
    """How persons are dealt to splits. The shares of pretrain, train, val and test sum to 1."""

    pretrain: float = Field(gt=0, le=1)
    train: float = Field(ge=0, le=1)
    val: float = Field(ge=0, le=1)
    test: float = Field(ge=0, le=1)
    ood: dict[Literal["dataset", "site"], tuple[str, ...]] = Field(default_factory=dict)
    """Whole datasets or sites kept apart: used for no choice, only for the last look."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Splits:
        total = self.pretrain + self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"pretrain + train + val + test is {total:g}, expected 1")
        return self

    def assign(self, person: str, *, seed: int) -> str:
        """The split of a person: a function of the person and the seed alone.

        So adding subjects moves nobody, and every site and label is split in the same shares in
        expectation. Exact shares in every stratum would need to know the others.
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
    """A person or an image that sits in two splits."""

    what: str
    splits: tuple[str, ...]
    scans: tuple[str, ...]


def find_leaks(scans: pd.DataFrame) -> list[Leak]:
    """Persons, and identical images under two names, that sit in more than one split."""
    leaks = []
    for column, what in (("person", "the subject"), ("sha256", "the image")):
        counts = scans.groupby(column)["split"].nunique()
        for key in counts.index[counts > 1]:
            rows = scans[scans[column] == key]
            label = key if column == "person" else key[:12]
            leaks.append(
                Leak(f"{what} {label}", tuple(sorted(set(rows["split"]))), tuple(rows["scan_id"]))
            )
    return leaks


@dataclass(frozen=True)
class PretrainedOn:
    """Whom and what an encoder has seen."""

    persons: frozenset[str] | None = frozenset()
    """Names, or hashes where there is a ``salt``; None where the encoder does not say."""
    images: frozenset[str] | None = None
    """SHA-256 of the image files; None where the encoder does not say."""
    salt: str = ""

    def among(self, persons: Iterable[str]) -> list[str]:
        """Which of ``persons`` it is known to have seen."""
        seen = self.persons or ()
        named = {hash_person(each, self.salt) if self.salt else each: each for each in persons}
        return sorted(person for name, person in named.items() if name in seen)


def hash_person(person: str, salt: str) -> str:
    """HMAC-SHA256 of a person's name, under a salt that is published with it.

    Who holds the same names can see whether they are meant; who does not can only try names.
    """
    return hmac.new(salt.encode(), person.encode(), "sha256").hexdigest()


def read_pretrained(encoder: Path) -> PretrainedOn:
    """subjects.tsv and images.tsv of an encoder's folder, as far as it has them."""
    path = encoder / "images.tsv"
    images = frozenset(read_table(path, IMAGES)["sha256"]) if path.exists() else None
    path = encoder / "subjects.tsv"
    if not path.exists():
        return PretrainedOn(None, images)
    if "person_hash" in path.read_text().partition("\n")[0].split("\t"):
        table = read_table(path, HASHED_SUBJECTS)
        salts = set(table["salt"])
        if len(salts) > 1:
            raise DataError(f"{path}: {len(salts)} salts, expected one for all. Export it again.")
        return PretrainedOn(frozenset(table["person_hash"]), images, next(iter(salts), ""))
    return PretrainedOn(frozenset(read_table(path, SUBJECTS)["person"]), images)


def guard_leaks(scans: pd.DataFrame, *, pretrained: PretrainedOn = PretrainedOn()) -> None:
    """Fail when a person or an image sits in two splits, or was pretrained on and is tested.

    Raises DataError.
    """
    found = [
        f"{leak.what} is in {' and '.join(leak.splits)}: {', '.join(leak.scans)}"
        for leak in find_leaks(scans)
    ]
    held_out = scans[scans["split"].isin(["val", "test", "ood"])]
    found += [
        f"the subject {person} was pretrained on and is in val, test or ood"
        for person in pretrained.among(held_out["person"])
    ]
    found += [
        f"the image of {scan.scan_id} was pretrained on under whatever name and is in {scan.split}"
        for scan in held_out[held_out["sha256"].isin(pretrained.images or ())].itertuples()
    ]
    if found:
        shown = "\n  ".join(found[:20]) + ("\n  …" if len(found) > 20 else "")
        raise DataError(
            f"Leakage: {len(found)} subjects or images would be seen in training and in "
            f"evaluation:\n  {shown}\nGive each person one split, or remove the duplicates."
        )
