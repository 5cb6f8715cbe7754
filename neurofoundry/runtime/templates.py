"""Text from Jinja templates that lie beside the modules that fill them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, context: Mapping[str, Any]) -> str:
    """Fill a template; values are escaped in .html, and begin no tag in .md.

    The text ends without a newline.

    Raises jinja2.UndefinedError where the template names what ``context`` lacks.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        finalize=_without_tags if template.suffix == ".md" else None,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)


def _without_tags(value: Any) -> Any:
    """Escape where HTML would begin, which a viewer of Markdown shows as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", value) if isinstance(value, str) else value
