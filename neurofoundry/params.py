"""params.yaml: read once and validated before any data is touched."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from neurofoundry.errors import UsageError


class Section(BaseModel):
    """A part of params.yaml: frozen, without keys that nobody reads, its numbers finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false where a number is expected: pydantic takes them for 1 and 0."""
        kinds = cls.types() if isinstance(values, dict) else {}
        for name in kinds.keys() & (values if kinds else {}):
            kind, value = kinds[name], values[name]
            inside = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, dict) and get_origin(kind) is dict:
                inside = list(value.values())
            if not _mentions(kind, bool, Any) and any(isinstance(each, bool) for each in inside):
                raise ValueError(f"{name}: true and false are no numbers")
        return values

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Return the type of each key that the section may hold."""
        return {field.alias or name: field.annotation for name, field in cls.model_fields.items()}


MANY = 1_000_000
"""More of anything than a study has: a bound for what is a slip of the finger."""
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A name that becomes a folder."""
Line = Annotated[
    str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$", max_length=1000)
]
"""A text that is shown, and put into cards: on one line, without codes that a terminal obeys."""

Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read ``path`` as ``model``, after overrides such as ``pretrain.epochs=3``.

    Raises UsageError naming every wrong key, what was found, and what is allowed.
    """
    return load_text(read_text(path), model, overrides, origin=str(path))


def load_text(
    text: str, model: type[Model], overrides: Sequence[str] = (), *, origin: str
) -> Model:
    """Read YAML (or JSON) that came from ``origin``, as `load` does."""
    return validate(_read_sections(text, overrides, origin=origin), model, origin=origin)


def load_part(
    text: str | Mapping[str, Any],
    part: type[Model],
    whole: type[BaseModel],
    overrides: Sequence[str] = (),
    *,
    origin: str,
) -> tuple[Model, str]:
    """Read the keys of ``whole`` that ``part`` has, of text as `load_text` or of what it holds.

    A key that ``whole`` does not have is an error. Return also what is wrong with the other keys
    that are there, if anything is: nobody needs them yet.
    """
    values = _read_sections(text, overrides, origin=origin) if isinstance(text, str) else dict(text)
    others = whole.model_fields.keys() - part.model_fields.keys()
    own = {key: value for key, value in values.items() if key not in others}
    read = validate(own, part, origin=origin)
    try:
        whole.model_validate(values)
    except ValidationError as error:
        present = [
            problem
            for problem in error.errors()
            if problem["type"] != "missing" or len(problem["loc"]) > 1
        ]
        return read, "; ".join(_explain(whole, problem) for problem in present)
    return read, ""


def read_layers(layers: Sequence[tuple[str, str]], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read several texts with what each is called: a later one adds to sections, and its values
    take the place of earlier ones. Lists are values. Raises UsageError."""
    values: dict[str, Any] = {}
    for text, origin in layers:
        values = _merged(values, _read_sections(text, (), origin=origin))
    for override in overrides:
        _override(values, override)
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            both[key] = _merged(old, value)
        else:
            both[key] = value
    return both


def _read_sections(text: str, overrides: Sequence[str], *, origin: str) -> dict[str, Any]:
    values = read_yaml(text, origin=origin)
    if not isinstance(values, dict):
        raise UsageError(f"{origin}: expected sections such as 'ingest:', found {_shown(values)}.")
    for override in overrides:
        _override(values, override)
    return values


MOST_BYTES = 10_000_000
"""More than anybody writes by hand."""


def read_text(path: Path) -> str:
    """Read a file that a person wrote, with or without a byte order mark. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UsageError(f"{path}: more than {MOST_BYTES} bytes, expected parameters.")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).") from error


def read_yaml(text: str, *, origin: str) -> Any:
    """Read YAML 1.2, as DVC writes it: yes and no are words, and 1e-3 is a number.

    Raises UsageError naming ``origin`` and the line, for a duplicate key as for wrong syntax.
    """
    if re.match(r"\s*%YAML\s+1\.[01]\b", text):
        raise UsageError(
            f"{origin}: the line '%YAML 1.1' asks for a language in which 1:30 is 90 and no is "
            "false. Remove it: YAML 1.2 is read."
        )
    try:
        yaml = YAML(typ="safe", pure=True)  # the loader in C knows YAML 1.1 only
        if "<<" in text and _size(yaml.compose(text), {}) > MANY:
            raise UsageError(f"{origin}: its merge keys (<<) make more than {MANY} values of it.")
        return yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        why, _, _ = str(error.problem or error.context).partition(" with value ")
        raise UsageError(f"{origin}{line}: not valid YAML: {why}.") from error
    except (YAMLError, ValueError, LookupError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise UsageError(f"{origin}: not valid YAML: {why}.") from error


def _size(node: Any, known: dict[int, int]) -> int:
    """Count the values below a node of YAML, those that it merges as often as they are."""
    if id(node) not in known:
        known[id(node)] = 1  # while it is counted: it may hold itself
        inside = node.value if isinstance(getattr(node, "value", None), list) else []
        each = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in each)
    return known[id(node)]


def _mentions(kind: Any, *wanted: Any) -> bool:
    """Return whether a type is, or is made of, one of those that are ``wanted``."""
    return kind in wanted or any(_mentions(each, *wanted) for each in get_args(kind))


def validate(values: Mapping[str, Any], model: type[Model], *, origin: str) -> Model:
    """Read ``values`` as ``model``. Raises UsageError naming ``origin`` and every wrong key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(model, problem)}" for problem in error.errors())
        raise UsageError(f"{origin}: these values cannot be used:\n{problems}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UsageError(f"--set {override}: expected KEY=VALUE, such as pretrain.epochs=3.")
    for name in names[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"--set {override}: '{name}' holds a value, not a section.")
        values = inner
    values[names[-1]] = read_yaml(text, origin=f"--set {override}")


def _explain(model: type[BaseModel], problem: ErrorDetails) -> str:
    """Say where a problem is, what was found, and what is allowed."""
    location = problem["loc"]
    keys, kind = _follow(model, location)
    where = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        _, section = _follow(model, location[:-1])
        return f"{where}: unknown key.{_suggest(str(location[-1]), _keys(section))}"
    if problem["type"].startswith("union_tag"):
        key = problem["ctx"]["discriminator"].strip("'")
        fields = [section.model_fields[key] for section in _alternatives(kind)]
        known = [str(tag) for field in fields for tag in get_args(field.annotation)]
        tag = problem["ctx"].get("tag")
        if tag is None:
            return f"{where}.{key}: missing. Allowed: {', '.join(known)}."
        return f"{where}.{key}: unknown {key} '{tag}'.{_suggest(tag, known)}"
    if problem["type"] == "missing":
        return f"{where}: missing."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (found {_shown(problem['input'])})" if where else message


def _shown(value: Any) -> str:
    """Return a value in a few words: a reference to itself may make it endless."""
    return f"{reprlib.repr(value):.80}"


def _suggest(wrong: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(wrong, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Allowed: {', '.join(known)}."


def _follow(kind: Any, location: Sequence[str | int]) -> tuple[list[str], Any]:
    """The keys that a person wrote on the way to ``location``, and the type that is expected there.

    pydantic's location has more: the alternative of a union that it chose, such as the tag
    'classification', and '[key]' for a key that is wrong itself.
    """
    keys: list[str] = []
    for part in location:
        alternatives = _alternatives(kind)
        if len(alternatives) > 1:
            kind = next((each for each in alternatives if part in _tags(each)), None)
        elif part != "[key]":
            keys.append(str(part))
            kind = _inside(alternatives[0], part)
    return keys, kind


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union, but for None; of another type, itself."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return [kind]
    return [
        member for each in get_args(kind) if each is not NoneType for member in _alternatives(each)
    ]


def _inside(kind: Any, key: str | int) -> Any:
    """The type of what is under ``key`` in a section, a mapping or a sequence."""
    if _is_section(kind):
        return kind.types().get(key)
    return next((each for each in reversed(get_args(kind)) if each is not Ellipsis), None)


def _keys(kind: Any) -> list[str]:
    """The keys of a section."""
    sections = [each for each in _alternatives(kind) if _is_section(each)]
    return [key for each in sections for key in each.types()]


def _tags(kind: Any) -> list[str]:
    """The values that choose a section among the alternatives of a union."""
    if not _is_section(kind):
        return []
    literals = (field.annotation for field in kind.model_fields.values())
    return [str(tag) for each in literals if get_origin(each) is Literal for tag in get_args(each)]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)
