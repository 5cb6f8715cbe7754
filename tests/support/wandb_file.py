"""Reads what W&B has kept offline: a log of records as LevelDB writes it, of protobuf messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def read(path: Path) -> Iterator[Any]:
    """The records of a run-ID.wandb file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + HEADER.size <= len(data):
        if BLOCK - place % BLOCK < HEADER.size:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        parts += data[place + HEADER.size :][:length]
        place += HEADER.size + length
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def of_kind(records: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    """Key to value; nested keys are joined by a slash."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(records: list[Any]) -> list[dict[str, Any]]:
    return [values(each.item) for each in of_kind(records, "history")]


def summary(records: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in of_kind(records, "summary"):
        found |= values(each.update)
    return found


def config(records: list[Any]) -> dict[str, Any]:
    (run,) = of_kind(records, "run")
    found = values(run.config.update)
    for each in of_kind(records, "config"):
        found |= values(each.update)
    return found
