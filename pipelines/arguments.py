"""The parameters of a run, checked before anything is sent: a cluster finds out hours later."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from neurofoundry.errors import UsageError
from neurofoundry.kubeflow.schemas import Selection
from neurofoundry.params import validate
from pipelines import compiled
from pipelines.node_pools import MOUNT

JSON_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "NUMBER_INTEGER": ((int,), "a whole number"),
    "NUMBER_DOUBLE": ((int, float), "a number"),
    "BOOLEAN": ((bool,), "true or false"),
    "LIST": ((list,), "a JSON list"),
    "STRUCT": ((dict,), "a JSON object"),
}
"""Type of a pipeline's parameter, other than a text, to types of JSON and what they are called."""

VOLUMES = ("dvc", "scratch", "shm")
"""Volumes of the steps. The driver names that of a claim after the claim."""


def check(documents: list[dict[str, Any]], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the ``given`` texts as the types that the pipeline declares. Raises UsageError."""
    declared = compiled.parameters(documents)
    for name in given:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise UsageError(
                f"--param {name}: the pipeline has no such parameter.{hint} "
                f"It has {', '.join(sorted(declared))}."
            )
    missing = [
        name
        for name, kind in declared.items()
        if name not in given and "defaultValue" not in kind and not kind.get("isOptional")
    ]
    if missing:
        raise UsageError(f"The pipeline needs {', '.join(missing)}: give --param {missing[0]}=…")
    values = {name: _typed(name, text, declared[name]) for name, text in given.items()}
    for name, value in values.items():
        if rule := RULES.get(name):
            rule(name, value)
    if values.get("data_revision") and not values.get("data_repository"):
        raise UsageError("--param data_revision: of which repository? Give data_repository, too.")
    return values


def check_cron(text: str) -> str:
    """Return a schedule if it has the six fields that Kubeflow reads. Raises UsageError."""
    fields = text.split()
    if len(fields) != len(CRON):
        raise UsageError(
            f"--cron '{text}': expected six fields, seconds first: '0 0 2 * * *' is daily at two."
        )
    for field, (name, least, most, words) in zip(fields, CRON, strict=True):
        numbers = [int(number) for number in re.findall(r"\d+", re.sub(r"/\d+", "", field))]
        letters = re.findall(r"[A-Za-z]+", field)
        if (
            not re.fullmatch(r"(?=.*[\dA-Za-z*?])[\dA-Za-z*?,/-]+", field)
            or not all(least <= number <= most for number in numbers)
            or not all(word.upper() in words for word in letters)
        ):
            raise UsageError(
                f"--cron '{text}': {field} is no {name}; expected {least} to {most}, *, lists, "
                "ranges or steps, such as */15."
            )
    return text


MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
CRON: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)
"""The fields of a schedule: what they are called, their least and most, and words for numbers."""


def _typed(name: str, text: str, declared: Mapping[str, Any]) -> Any:
    kind = declared["parameterType"]
    if kind == "STRING":
        return text
    types, words = JSON_TYPES[kind]
    value = None
    with contextlib.suppress(ValueError):
        value = json.loads(text)
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "BOOLEAN"):
        raise UsageError(f"--param {name}={text}: expected {words}.")
    return value


def _at_least(least: int) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value < least:
            raise UsageError(f"--param {name}={value}: expected {least} or more.")

    return check


def _gpus(name: str, value: str) -> None:
    if not re.fullmatch("[0-9]+", value):
        raise UsageError(f"--param {name}={value}: expected a whole number, 0 or more.")


def _claim(name: str, value: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", value):
        raise UsageError(
            f"--param {name}={value}: expected the name of a persistent volume claim, in small "
            "letters, digits and -: it becomes the name of a volume."
        )
    if value in VOLUMES:
        raise UsageError(
            f"--param {name}={value}: the steps have a volume of that name. Give the claim another."
        )


def _store(name: str, value: str) -> None:
    path = PurePosixPath(value)
    if not path.is_relative_to(MOUNT) or ".." in path.parts:
        raise UsageError(
            f"--param {name}={value}: expected {MOUNT}, where the volume is mounted, or a folder "
            "below it."
        )


def _version(name: str, value: str) -> None:
    if value and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise UsageError(
            f"--param {name}={value}: expected the name of a folder in STORE/data, such as the md5 "
            "in data.dvc."
        )


def _selector(name: str, value: Any) -> None:
    validate({"selector": value}, Selection, origin=f"--param {name}")


def _tolerations(name: str, value: Any) -> None:
    # Kubernetes knows one word more than a pool does.
    plain = [
        {key: each[key] for key in each if key != "tolerationSeconds"}
        if isinstance(each, dict)
        else each
        for each in value
    ]
    validate({"tolerations": plain}, Selection, origin=f"--param {name}")


RULES: dict[str, Callable[[str, Any], None]] = {
    "gpus": _gpus,
    "nodes": _at_least(1),
    "preprocess_shards": _at_least(1),
    "finetune_shards": _at_least(0),
    "claim": _claim,
    "store": _store,
    "data_version": _version,
    **{f"{role}_selector": _selector for role in ("light", "cpu", "gpu")},
    **{f"{role}_tolerations": _tolerations for role in ("light", "cpu", "gpu")},
}
"""Parameter to what refuses a value that no cluster could use."""
