"""Text from Jinja templates that lie beside the modules that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, context: Mapping[str, Any]) -> str:
    """Fill a template; values are escaped in .html. The text ends without a newline.

    Raises jinja2.UndefinedError where the template names what ``context`` lacks.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(context)
