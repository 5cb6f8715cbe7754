"""Contract documents: JSON with a schema, checked when it is written and when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from neurofoundry.errors import DataError
from neurofoundry.runtime.files import write_json

Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, schema: type[Document], *, what: str, remedy: str) -> Document:
    """Read JSON as ``schema``. DataError says that it is not ``what``, why, and the ``remedy``."""
    try:
        return schema.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise DataError(f"{path}: not {what} ({reason}). {remedy}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not {what} ({error}). {remedy}.") from error


def write_document(path: Path, content: Any, schema: type[BaseModel]) -> None:
    """Write ``content`` as JSON, as a whole or not at all, after checking it against ``schema``.

    What breaks the schema is a defect of ours (pydantic's ValidationError).
    """
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    schema.model_validate(plain)
    write_json(path, plain)
