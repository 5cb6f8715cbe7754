"""Which code decides an output, by what the code means and not by how it is written.

It is the modules that a stage imports, directly or not, less the services that decide nothing.
Comments, docstrings and formatting do not count. Stage keys, checkpoints, cached scans and models,
and the check of dvc.yaml all ask `deciding_code`.
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
"""Packages and modules that decide nothing that a stage writes: the command line, how parameters
are read (their values are part of every key), where outputs lie, tracking, logging."""

TEMPLATES = (".html", ".md")
"""Files beside a module that decide what it writes if it names them; they count as text."""

STATISTICS = "neurofoundry.stats"
"""How metrics are computed. Every module that knows tasks imports it, as a task names its metrics;
it decides the output of `STATISTICS_DECIDE` alone."""

STATISTICS_DECIDE = ("neurofoundry.evaluate", STATISTICS)

ROOT = Path(neurofoundry.__file__).parent


@cache
def deciding_code(entry: str, *found_by_name: str) -> Mapping[str, str]:
    """Return the modules that decide what the module ``entry`` makes, with the hash of each.

    It finds some by name, without a statement that imports them, such as an objective of
    pretraining. The names are relative to the package, such as ``nn.encoders`` or, of a template,
    ``evaluate/report/report.html``.
    """
    hashes: dict[str, str] = {}
    waiting = [entry, *found_by_name]
    services = SERVICES if _within(entry, STATISTICS_DECIDE) else (*SERVICES, STATISTICS)
    while waiting:
        module = waiting.pop()
        path = _file_of(module)
        if module in hashes or path is None or (module != entry and _within(module, services)):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hashes[module] = _hash(_meaning(tree))
        waiting += _imports(tree, module)
        for template in _templates(tree, path.parent):
            name = template.relative_to(ROOT).as_posix()
            hashes[name] = _hash(template.read_text(encoding="utf-8"))
    relative = {name.removeprefix("neurofoundry."): value for name, value in hashes.items()}
    return MappingProxyType(dict(sorted(relative.items())))


def code_hash(entry: str) -> str:
    """Return one hash of `deciding_code`."""
    return _hash("\n".join(f"{name} {value}" for name, value in deciding_code(entry).items()))


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names whose hashes differ between two results of `deciding_code`."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def git_commit() -> str:
    """Return the commit of the running code, with '+' if files differ from it; '' if unknown."""
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
    """Return the source file of a module of this package; None if ``module`` is not one."""
    first, *rest = module.split(".")
    if first != "neurofoundry" or not rest:  # the package itself holds only the version
        return None
    path = ROOT.joinpath(*rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _imports(tree: ast.Module, module: str) -> Iterator[str]:
    """Yield what a module may import, at whatever place, and the packages that it lies in."""
    parts = module.split(".")
    yield from (".".join(parts[:depth]) for depth in range(2, len(parts)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            # A name may be that of a module or of something in one.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _templates(tree: ast.Module, folder: Path) -> Iterator[Path]:
    """Yield the templates beside a module that it names."""
    for node in ast.walk(tree):
        text = str(node.value) if isinstance(node, ast.Constant) else ""
        if text.endswith(TEMPLATES) and (folder / text).is_file():
            yield folder / text


def _meaning(node: object) -> str:
    """Return a syntax tree as text, without positions, docstrings and empty fields.

    Unlike `ast.dump`, it is the same in every version of Python in which the syntax means the same.
    """
    if isinstance(node, list):
        return "[" + ",".join(_meaning(item) for item in node if not _is_docstring(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = (
        f"{name}={_meaning(value)}"
        for name, value in ast.iter_fields(node)
        if name not in ("ctx", "type_comment", "kind") and value is not None and value != []
    )
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: object) -> bool:
    """Return whether a node is a docstring, be it that of a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
