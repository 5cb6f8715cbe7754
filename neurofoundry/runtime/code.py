"""Which code decides an output, by what the code means and not by how it is written.

The modules that a stage imports, directly or not, less the services that decide nothing. Comments,
docstrings and formatting do not count. Stage keys, checkpoints, cached scans and models, and the
check of dvc.yaml all ask `deciding_code`.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import neurofoundry

SERVICES = (
    "neurofoundry.cli",
    "neurofoundry.errors",
    "neurofoundry.kubeflow",
    "neurofoundry.params",
    "neurofoundry.project",
    "neurofoundry.runtime",
)
"""Packages and modules that decide nothing of what a stage writes: the command line, how parameters
are read (their values are part of every key), where outputs lie, tracking, logging."""

TEMPLATES = (".html", ".md")
"""Files beside a module that decide what it writes where it names them; they count as text."""

JUDGES = "neurofoundry.stats"
"""Tasks name the metrics that they are judged by, so that who knows tasks imports how these are
computed. It decides what a stage writes only where `ASKS_JUDGES`."""

ASKS_JUDGES = ("neurofoundry.evaluate", "neurofoundry.stats")

ROOT = Path(neurofoundry.__file__).parent


@cache
def deciding_code(entry: str) -> Mapping[str, str]:
    """The modules that decide what the module ``entry`` makes, each with the hash of its meaning.

    Names are relative to the package, such as ``nn.encoders`` or, of a template,
    ``evaluate/report/report.html``.
    """
    found: dict[str, str] = {}
    waiting = [entry]
    services = SERVICES if _within(entry, ASKS_JUDGES) else (*SERVICES, JUDGES)
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if module in found or path is None or (module != entry and _within(module, services)):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[module] = _hash(_meaning(tree))
        waiting += _imports(tree, module)
        for template in _templates(tree, path.parent):
            name = template.relative_to(ROOT).as_posix()
            found[name] = _hash(template.read_text(encoding="utf-8"))
    named = {module.removeprefix("neurofoundry."): value for module, value in found.items()}
    return MappingProxyType(dict(sorted(named.items())))


def code_hash(entry: str) -> str:
    """One hash of `deciding_code`."""
    return _hash("\n".join(f"{name} {value}" for name, value in deciding_code(entry).items()))


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of what is not the same in two results of `deciding_code`."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def git_commit() -> str:
    """The commit of the code that runs, with '+' when files differ from it; '' if unknown."""
    if commit := os.environ.get("NEUROFOUNDRY_GIT_COMMIT"):
        return commit
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
            )
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(ROOT)])
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _file_of(module: str) -> Path | None:
    """The source of a module of this package; None for a name that is none."""
    first, *rest = module.split(".")
    if first != "neurofoundry" or not rest:  # of the package itself only the version is read
        return None
    path = ROOT.joinpath(*rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _imports(tree: ast.Module, module: str) -> Iterator[str]:
    """What a module may import, wherever the statement stands, and the packages it lies in."""
    parts = module.split(".")
    yield from (".".join(parts[:depth]) for depth in range(2, len(parts)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            # A name may be a module or something within one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _templates(tree: ast.Module, folder: Path) -> Iterator[Path]:
    """The templates beside a module that it names."""
    for node in ast.walk(tree):
        named = str(node.value) if isinstance(node, ast.Constant) else ""
        if named.endswith(TEMPLATES) and (folder / named).is_file():
            yield folder / named


def _meaning(node: ast.AST | list[ast.AST] | object) -> str:
    """A syntax tree as text, without positions, docstrings and empty fields.

    Unlike `ast.dump`, the same for every version of Python in which the syntax means the same.
    """
    if isinstance(node, list):
        kept = [each for each in node if not _is_text(each)]
        return "[" + ",".join(map(_meaning, kept)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        f"{name}={_meaning(value)}"
        for name, value in ast.iter_fields(node)
        if name not in ("ctx", "type_comment", "kind") and value is not None and value != []
    )
    return f"{type(node).__name__}({','.join(fields)})"


def _is_text(node: object) -> bool:
    """A docstring, or one that documents a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
