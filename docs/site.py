"""What the documentation site needs beside the pages in docs/ (hooks of mkdocs.yml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ABOVE = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages that GitHub expects at the root of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages above docs/, with links as from within it."""
    for name in ABOVE:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that lead out of docs/ to the pages that were added."""
    for name in ABOVE:
        markdown = markdown.replace(f"](../{name}", f"]({name}")
    return markdown
