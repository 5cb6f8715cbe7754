"""The section `ingest` of params.yaml."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from neurofoundry.contracts.cohort import T1W, check_contrasts
from neurofoundry.contracts.splits import Splits
from neurofoundry.contracts.volumes import VOLUMES
from neurofoundry.params import Section

_SEX = {
    "F": (
        *("F", "female", "woman", "girl", "W", "weiblich", "frau", "femme", "féminin", "femenino"),
        *("mujer", "femminile", "donna", "vrouw", "feminino"),
    ),
    "M": (
        *("M", "male", "man", "boy", "männlich", "mann", "homme", "masculin", "masculino"),
        *("hombre", "maschile", "uomo"),
    ),
}
"""Words in any case; not H, nor D."""
Text = Annotated[str, AfterValidator(partial(unicodedata.normalize, "NFC"))]
"""What stands in a table, too, in the Unicode form in which tables are read."""
DESCRIBED = ("age", "sex", "site", "scanner", "field_strength")
"""Columns of every cohort, whether params.yaml names them or not."""


class Dataset(Section):
    """A folder of scans that are all organized in one way."""

    name: Text
    """The name of the dataset in every table; subject labels are unique within it."""
    kind: Literal["bids", "dicom", "table"]
    path: str
    """Folder (or the table itself) relative to the data root; '.' is the root."""

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise ValueError("expected a name without line breaks or spaces at its ends")
        return name

    @field_validator("path")
    @classmethod
    def _below_the_root(cls, path: str) -> str:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise ValueError("expected a path below the data root, without '..'")
        return str(parts)


class Column(Section):
    """Where datasets keep a fact about a scan, and what the values mean."""

    from_: tuple[Text, ...] = Field(alias="from", min_length=1)
    """Column names in the datasets' tables; the first that holds a value is used."""
    values: dict[Text, tuple[Text, ...]] = Field(default_factory=dict)
    """Our value to theirs. Any other value becomes n/a. By default, values are kept as they are."""
    missing: tuple[Text, ...] = ()
    """Codes for a value that is missing, such as [-4, -9, 999]: they become n/a."""
    range: tuple[float, float] | None = None
    """The lowest and the highest number that can be true, as [0, 30]; others become n/a."""

    def names(self, column: str) -> bool:
        """Return whether a column of a table, in any case, is one of ``from``."""
        return column.casefold() in {source.casefold() for source in self.from_}

    @field_validator("missing", mode="before")
    @classmethod
    def _codes(cls, codes: Any) -> Any:
        return [str(code) for code in _listed(codes)]

    @field_validator("range")
    @classmethod
    def _ordered(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is not None and not ends[0] < ends[1]:
            raise ValueError("expected the lowest and the highest number, in this order")
        return ends

    @model_validator(mode="after")
    def _classes_have_no_range(self) -> Column:
        if self.values and self.range:
            raise ValueError("`range` is of numbers and `values` of classes: give one of them")
        return self

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for word in [*values, *(theirs for many in values.values() for theirs in _listed(many))]:
            if isinstance(word, bool):
                raise ValueError(
                    "YAML reads yes, no, on and off without quotes as true and false: "
                    'write "yes" and "no"'
                )
        return {str(ours): [str(one) for one in _listed(many)] for ours, many in values.items()}

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        theirs = [one for many in values.values() for one in many]
        if ambiguous := {one for one in theirs if theirs.count(one) > 1}:
            raise ValueError(f"{sorted(ambiguous)[0]!r} is listed under two values")
        if empty := [ours for ours, many in values.items() if not ours.strip() or not many]:
            raise ValueError(f"{empty[0]!r} has no name, or no value of a dataset stands for it")
        return values


class IngestParams(Section):
    """What goes into the cohort, and how persons are assigned to splits."""

    datasets: tuple[Dataset, ...] = ()
    """`auto` (the empty list): whatever lies below the data root; or a list."""
    columns: dict[str, Column] = Field(default_factory=dict, validate_default=True)
    """Common name to where datasets keep it. age, sex and site are expected under their own names
    unless they are declared here."""
    splits: Splits
    shared_subjects: tuple[tuple[str, ...], ...] = ()
    """Groups of datasets in which equal subject labels name the same person."""
    contrasts: tuple[str, ...] = (T1W,)
    """What a session is scanned with, by BIDS suffix: T1w, by which a session is placed, comes
    first; then others such as FLAIR and T2w."""
    optional_contrasts: tuple[str, ...] = ()
    """Those of ``contrasts`` that a session may lack. Without one of the others it is excluded."""

    @model_validator(mode="before")
    @classmethod
    def _split_column(cls, values: Any) -> Any:
        """Read ``split_column``, which preceded the mode of published splits, as that mode."""
        if not isinstance(values, dict) or "split_column" not in values:
            return values
        rest = {name: value for name, value in values.items() if name != "split_column"}
        if values["split_column"] is None:
            return rest
        published = {"mode": "published", "column": values["split_column"]}
        return {**rest, "splits": {**values.get("splits", {}), **published}}

    @field_validator("datasets", mode="before")
    @classmethod
    def _auto(cls, datasets: Any) -> Any:
        if datasets == "auto":
            return ()
        if not isinstance(datasets, list | tuple):
            raise ValueError("expected 'auto' or a list of {name, kind, path}")
        return datasets

    @field_validator("datasets")
    @classmethod
    def _named_once(cls, datasets: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
        names = [dataset.name for dataset in datasets]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two datasets are called {sorted(duplicates)[0]!r}")
        return datasets

    @field_validator("columns")
    @classmethod
    def _complete(cls, columns: dict[str, Column]) -> dict[str, Column]:
        reserved = set(VOLUMES.columns) - set(DESCRIBED)
        if wrong := sorted(reserved & set(columns)):
            raise ValueError(f"'{wrong[0]}' is set by the pipeline itself")
        for name in ("age", "field_strength"):
            if name in columns and columns[name].values:
                raise ValueError(f"'{name}' is a number: `values` has no effect")
        complete = {name: _column([name]) for name in ("age", "sex", "site")} | columns
        sex = complete["sex"]
        if not set(sex.values) <= {"F", "M"}:
            raise ValueError(f"sex: values are F and M, found {', '.join(sorted(sex.values))}")
        return complete | {"sex": sex if sex.values else _column(sex.from_, values=_SEX)}

    @field_validator("contrasts")
    @classmethod
    def _t1w_first(cls, contrasts: tuple[str, ...]) -> tuple[str, ...]:
        return check_contrasts(contrasts)

    @model_validator(mode="after")
    def _optional_are_contrasts(self) -> IngestParams:
        if unknown := sorted(set(self.optional_contrasts) - set(self.contrasts[1:])):
            raise ValueError(
                f"optional_contrasts: {unknown[0]} is none of `contrasts` after T1w: name it "
                "there, too, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _shared_once(self) -> IngestParams:
        names = [name for group in self.shared_subjects for name in group]
        if len(set(names)) != len(names):
            raise ValueError("shared_subjects: a dataset is in two groups; join them")
        if any(len(group) < 2 for group in self.shared_subjects):
            raise ValueError("shared_subjects: a group needs at least two datasets")
        return self


def _column(sources: Sequence[str], **declared: Any) -> Column:
    return Column.model_validate({"from": sources, **declared})


def _listed(many: Any) -> list[Any]:
    return list(many) if isinstance(many, list | tuple) else [many]
