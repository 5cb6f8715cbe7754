"""Write parameters.md and command-line.md, the pages that follow from the code.

    python -m docs.reference

`make docs` does so; a test fails where a page is not what the code says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from neurofoundry.cli import main  # noqa: F401  its commands join the app
from neurofoundry.cli.options import app
from neurofoundry.params import Section
from neurofoundry.project import Params
from pipelines.__main__ import app as pipelines

DOCS = Path(__file__).resolve().parent

NOTE = "<!-- Written by `make docs` (docs/reference.py) from the docstrings in the code. -->"

WORDS = {bool: "true or false", float: "number", int: "whole number", str: "text", Path: "path"}

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
REQUIRED = object()
"""In the place of the default of a key that has none."""

PARAMETERS = f"""\
# Parameters

{NOTE}

Every key of params.yaml. The file is validated before any data is touched: an unknown key, a wrong
value or an option without effect is an error that names the key. A stage needs its own sections,
and warns of what is wrong in others; `run` and `submit` need them all. `--set KEY=VALUE` overrides
a value on the command line, `dvc exp run -S KEY=VALUE` in an experiment. NAME stands for a name of
your own, `[]` for the entries of a list.

`params.yaml` is for the sample cohort on a laptop. `neurofoundry init --preset NAME` writes others:
`first-look` for a folder of scans in minutes, `workstation` for one GPU, `paper` for the published
recipe. All set values that differ from the defaults below.
"""

COMMANDS = f"""\
# Command line

{NOTE}

Exit codes of `neurofoundry`: 0 done; 2 parameters or usage, or what the machine refuses; 3 input
data; 1 a defect of ours. Those of `python -m pipelines` are in
[Run on Kubeflow](kubeflow.md#submit-a-run).
"""


class Row(NamedTuple):
    """What the page says of a key."""

    key: str
    values: str
    default: str
    meaning: str

    def __str__(self) -> str:
        return f"| `{self.key}` | {self.values} | {self.default} | {self.meaning} |"

    def __or__(self, other: Row) -> Row:
        """The same key of two alternatives, such as two kinds of a task."""
        values = ", ".join(dict.fromkeys([self.values, other.values]))
        default = self.default if self.default == other.default else "required"
        return self._replace(values=values, default=default)


def parameters() -> str:
    """The text of parameters.md."""
    lines = [PARAMETERS]
    for name, field in Params.model_fields.items():
        sections, _ = _sections(field.annotation)
        lines += [f"## `{name}`", ""]
        if sections:
            lines += [_text(_common(sections).__doc__ or ""), ""]
        lines += ["| key | value | default | |", "|---|---|---|---|"]
        lines += [*map(str, _rows(name, field, _default(field))), ""]
    return "\n".join(lines)


def parameter_keys() -> set[str]:
    """Every key of params.yaml, as parameters.md names it."""
    fields = Params.model_fields.items()
    return {row.key for name, field in fields for row in _rows(name, field, REQUIRED)}


def _rows(key: str, field: FieldInfo, default: Any) -> Iterator[Row]:
    """What is to be said of a parameter, and of those within it."""
    sections, step = _sections(field.annotation)
    within = [pair for section in sections for pair in _fields(section).items()]
    documented = any(each.description for _, each in within)
    if not documented or field.description or default is None:
        shown = "as below" if documented and isinstance(default, BaseModel) else _show(default)
        yield Row(key, _values(field), shown, _text(field.description or ""))
    if not documented:
        return
    rows: dict[str, Row] = {}
    for name, each in within:
        given = isinstance(default, BaseModel) and hasattr(default, name)
        inner = getattr(default, name) if given else _default(each)
        for row in _rows(f"{key}{step}.{each.alias or name}", each, inner):
            rows[row.key] = rows.get(row.key, row) | row
    yield from rows.values()


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section, and the sections in it that have the names of modules."""
    if not issubclass(section, Section):
        return section.model_fields
    named = {field.alias or name for name, field in section.model_fields.items()}
    return section.model_fields | {
        name: FieldInfo(annotation=kind, default=kind())
        for name, kind in section.types().items()
        if name not in named
    }


def _sections(annotation: Any) -> tuple[list[type[BaseModel]], str]:
    """The models of a section, of the values of a mapping or of the entries of a list (several
    where there are alternatives), and how a key goes on to them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], ""
    step = {dict: ".NAME", tuple: "[]"}.get(get_origin(annotation), "")
    inner = [_sections(member) for member in get_args(annotation)]
    sections = [section for found, _ in inner for section in found]
    return sections, step + next((further for found, further in inner if found), "")


def _common(sections: Sequence[type[BaseModel]]) -> type:
    """The nearest class that all are, or descend from."""
    return next(each for each in sections[0].mro() if all(issubclass(s, each) for s in sections))


def _values(field: FieldInfo) -> str:
    bounds = [_bound(each) for each in field.metadata]
    return " ".join([_kind(field.annotation), *filter(None, bounds)])


def _kind(annotation: Any) -> str:
    kind = get_origin(annotation)
    members = [each for each in get_args(annotation) if each not in (type(None), Ellipsis)]
    if annotation in WORDS:
        return WORDS[annotation]
    if kind is Literal:
        return ", ".join(f"`{each}`" for each in members)
    if kind is dict:
        return f"NAME: {_kind(members[1])}"
    if kind is tuple:
        return f"list of {_kind(members[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ", ".join(field.alias or name for name, field in annotation.model_fields.items())
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _kind(members[0])
    return " or ".join(dict.fromkeys(map(_kind, members)))


def _bound(bound: Any) -> str:
    if not isinstance(bound, annotated_types.BaseMetadata):
        return ""
    ends = [(sign, getattr(bound, name, None)) for name, sign in SIGNS.items()]
    return " ".join(f"{sign} {end:g}" for sign, end in ends if end is not None)


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return REQUIRED
    return field.get_default(call_default_factory=True)


def _show(default: Any) -> str:
    if default is REQUIRED:
        return "required"
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", exclude_none=True)
    return f"`{json.dumps(default)}`"


def command_line() -> str:
    """The text of command-line.md."""
    lines = [COMMANDS]
    for program, commands in (("neurofoundry", app), ("python -m pipelines", pipelines)):
        group = typer.main.get_command(commands)
        lines += [f"## {program}", "", _text(group.help or ""), ""]
        for name, command in _commands(group):
            lines += [f"### `{program} {name}`", "", _text(command.help or ""), ""]
            lines += ["| option | default | |", "|---|---|---|", *map(_option, command.params), ""]
    return "\n".join(lines)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


def _option(option: Any) -> str:
    if option.param_type_name == "argument":
        many = " …" if option.nargs == -1 else ""
        name = option.name.upper().rstrip("_")
        return f"| `{name}`{many} | required | {_text(option.help or '')} |"
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = "required" if option.required else _shown(option.default)
    return f"| {names} | {default} | {_text(option.help or '')} |"


def _shown(default: Any) -> str:
    """A default, without the machine's own paths."""
    if isinstance(default, Path) and default.is_absolute():
        return f"`{default.relative_to(DOCS.parent)}`"
    if default is None or default is False or default == "" or callable(default):
        return ""
    if default is True:
        return "on"
    return f"`{getattr(default, 'value', default)}`"


def _text(words: str) -> str:
    """In one line, as a cell of a table."""
    return " ".join(words.replace("``", "`").split()).replace("|", r"\|")


PAGES = {"parameters.md": parameters, "command-line.md": command_line}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
