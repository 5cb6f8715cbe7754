"""params.yaml: read once, validated whole, before any data is touched."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from neurofoundry.errors import UsageError


class Section(BaseModel):
    """A part of params.yaml: frozen, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that becomes a folder."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2, as DVC writes it: yes and no are words. A key that stands twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(
                    f"{node.start_mark.name}: the key '{key}' stands twice in the block that "
                    f"starts in line {node.start_mark.line + 1}. Keep one of them."
                )
        return super().construct_mapping(node, deep)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")

Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read ``path`` as ``model``, after overrides such as ``pretrain.epochs=3``.

    Raises UsageError naming every wrong key, what was found, and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the parameters cannot be read ({error}).") from error
    return load_text(text, model, overrides, origin=str(path))


def load_text(
    text: str, model: type[Model], overrides: Sequence[str] = (), *, origin: str
) -> Model:
    """As `load`, from YAML (or JSON) that came from ``origin``."""
    loader = _Loader(text)
    loader.name = origin
    try:
        values = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{origin}: expected sections such as 'ingest:', found {values!r:.80}.")
    for override in overrides:
        _override(values, override)
    return validate(values, model, origin=origin)


def validate(values: Mapping[str, Any], model: type[Model], *, origin: str) -> Model:
    """``values`` as ``model``; UsageError names ``origin`` and every wrong key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(model, problem)}" for problem in error.errors())
        raise UsageError(f"{origin}: these parameters cannot be used:\n{problems}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {override}: expected KEY=VALUE, such as pretrain.epochs=3.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: the value is not valid YAML.") from error
    for name in names[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: '{name}' holds a value, not a section.")
        values = inner
    values[names[-1]] = value


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"]) or "(top)"
    if problem["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"{location}: unknown key.{hint} Allowed: {', '.join(sorted(allowed))}."
    if problem["type"] == "missing":
        return f"{location}: missing."
    found = f" (found {problem['input']!r:.80})" if problem["loc"] else ""
    return f"{location}: {problem['msg'].removeprefix('Value error, ')}{found}"


def _allowed_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the section at ``location``, looking into Optional, dict, list and tuple."""
    here: Any = model
    for part in location:
        if _is_section(here):
            field = here.model_fields.get(str(part))
            here = field.annotation if field else None
        else:
            here = next((kind for kind in reversed(get_args(here)) if kind is not Ellipsis), None)
        here = next(
            (kind for kind in get_args(here) if _optional(here) and _is_section(kind)), here
        )
    if not _is_section(here):
        return []
    return [field.alias or name for name, field in here.model_fields.items()]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _optional(kind: Any) -> bool:
    return type(None) in get_args(kind)
