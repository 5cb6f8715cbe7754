"""Tells what a pipeline has made from raw BIDS data, so that its copies of people are no persons.

Pipelines before BIDS 1.4 (fMRIPrep before 20.2) write no ``DatasetType``; names, with entities that
raw BIDS does not have, tell even where there is no description at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofoundry.ingest.listing import read_json

_ENTITIES = {"desc", "space", "res", "den", "label", "seg", "atlas", "cohort", "from", "to"}
"""Entities that only names of derivatives have."""
_RAW_TOOL = re.compile(
    r"bids|dcm|dicom|heudiconv|convert|deface|anonymi|deidenti|manual|curat|datalad|xnat|openneuro"
)
"""Names of tools that make raw datasets, as `GeneratedBy` may also say (HeuDiConv, dcm2niix)."""


def why_derivative(folder: Path) -> str | None:
    """Return what in a dataset's description says that it is a derivative, or None.

    A description that says `DatasetType: raw` is believed.
    """
    content = read_json(folder / "dataset_description.json")
    if not isinstance(content, dict):
        return None
    description = {key.casefold(): value for key, value in content.items()}
    kind = str(description.get("datasettype") or "").strip().casefold()
    if kind.startswith(("deriv", "study-deriv", "processed")):
        return "DatasetType"
    if kind.startswith("raw"):
        return None
    if description.get("pipelinedescription"):
        return "PipelineDescription"
    tools = _tools(description.get("generatedby"))
    return "GeneratedBy" if tools and not any(map(_RAW_TOOL.search, tools)) else None


def derived_entity(entities: Sequence[str]) -> str | None:
    """Return the first of the ``entities`` of a name that raw BIDS does not have."""
    return next((entity for entity in entities if entity.partition("-")[0] in _ENTITIES), None)


def _tools(generated_by: Any) -> list[str]:
    """Return the names, in lower case, of the tools in GeneratedBy."""
    listed = generated_by if isinstance(generated_by, list) else [generated_by]
    names = (tool.get("Name") if isinstance(tool, Mapping) else tool for tool in listed if tool)
    return [str(name).casefold() for name in names if name]
