"""What `neurofoundry` and `python -m pipelines` both read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class DvcOutput(BaseModel):
    """A file or folder that DVC tracks; keys of other versions of DVC are ignored."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    md5: str
    """Hash of the content, which names its version; a folder's ends in ``.dir``."""
    path: str
    nfiles: int = 0
    size: int = 0
    """Bytes."""


class DvcFile(BaseModel):
    """What `dvc add` writes, such as data.dvc."""

    model_config = ConfigDict(frozen=True)

    outs: tuple[DvcOutput]
