"""Contract documents: JSON with a schema, checked when it is written and when it is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from neurofoundry.errors import DataError
from neurofoundry.runtime.files import write_json

Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, schema: type[Document], *, what: str, remedy: str) -> Document:
    """Read JSON as ``schema``.

    Raises DataError: that the file is not ``what``, why not, and the ``remedy``, a sentence.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text, parse_constant=_refuse_number, parse_float=_finite)
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise DataError(f"{path}: not {what} ({reason}). {remedy}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not {what} ({error}). {remedy}.") from error
    except RecursionError:
        raise DataError(f"{path}: not {what} (nested too deeply). {remedy}.") from None


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text:.20} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text)


def write_document(path: Path, content: Any, schema: type[BaseModel]) -> None:
    """Check ``content`` against ``schema`` and write it as JSON, as a whole or not at all.

    Raises pydantic's ValidationError: content that breaks the schema is a defect of the caller.
    """
    plain = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    schema.model_validate(plain)
    write_json(path, plain)
