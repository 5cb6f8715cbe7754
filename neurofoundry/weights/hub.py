"""The front matter of a model card, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import re
from typing import Any

LICENCES = (
    *("mit", "apache-2.0", "bsd-3-clause", "cc0-1.0", "odc-by", "pddl"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
"""Licences that the hub knows by these names; any other is 'other', with a name of its own."""

TAGS = ("brain-mri", "t1w", "3d", "medical-imaging", "foundation-model")


def front_matter(*, licence: str, synthetic: bool, **more: Any) -> str:
    """Return the front matter, YAML between two lines; ``synthetic`` where no patient was seen."""
    tags = [*TAGS, *more.pop("tags", ()), *(["synthetic"] if synthetic else [])]
    values = {**_licence(licence), "library_name": "neurofoundry", "tags": tags, **more}
    # JSON is YAML, and quotes what YAML would take for something else.
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "\n".join(["---", *lines, "---"])


def _licence(licence: str) -> dict[str, str]:
    name = licence.lower()
    if name in LICENCES:
        return {"license": name}
    own = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
    return {"license": "other", "license_name": own or "unknown"}
