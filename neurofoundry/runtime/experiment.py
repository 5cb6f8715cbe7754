"""What a stage is recorded as a part of, where, and under which names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from neurofoundry.errors import UsageError
from neurofoundry.params import Section, read_yaml
from neurofoundry.runtime.files import hash_json, short

Mode = Literal["online", "offline", "disabled"]

WANDB_MODES: Mapping[str, Mode] = {
    **{"online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "disabled"},
}
"""What the values of WANDB_MODE mean, as in wandb.Settings.mode."""

WANDB_DISABLED = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off", ""), False),
}
"""What the values of WANDB_DISABLED mean: W&B no longer reads it, and people still set it."""

PRIVATE = ("path", "overrides", "template", "champion")
"""Parameters that name files."""


class TrackingParams(Section):
    """Where experiments are recorded."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: as W&B is switched (WANDB_MODE, WANDB_DISABLED, `wandb offline`); else online with an
    API key, or after `wandb login`; offline without."""
    project: str = "neurofoundry"
    registry: str = Field(default="model", pattern=r"^[A-Za-z0-9_-]*$")
    """The registry of W&B in which a promoted model that is sent is linked to the collection named
    after its task; '' links none."""


@dataclass(frozen=True)
class Experiment:
    """The pipeline run that a stage belongs to."""

    params: TrackingParams
    settings: str = ""
    """Hash of the parameters of all stages; '' where only those of one stage are known."""

    def group(self, data_version: str) -> str:
        """Return the name that the stages of one pipeline run have in common.

        It is that of Kubeflow's run, of the group that W&B is told, or of DVC's experiment; else it
        follows from parameters and data, so that a run that was killed goes on in it.
        """
        return _given() or _name(self.settings, data_version)


def _given() -> str:
    """Return the name of the pipeline run that the environment tells; '' if it tells none."""
    names = ("NEUROFOUNDRY_RUN", "WANDB_RUN_GROUP", "DVC_EXP_NAME")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _name(*what: str) -> str:
    """Return the name of the pipeline run that ``what`` makes."""
    return f"run-{short(hash_json(list(what)))}"


@contextmanager
def pipeline_run(*what: object) -> Iterator[None]:
    """Name the pipeline run of what is done meanwhile after ``what`` makes it, if nobody else has.

    The same again is the same pipeline run, such as one that was killed and goes on.
    """
    if _given():
        yield
        return
    os.environ["NEUROFOUNDRY_RUN"] = _name(*map(str, what))
    try:
        yield
    finally:
        del os.environ["NEUROFOUNDRY_RUN"]


def switched() -> Mode | None:
    """Return what the environment tells W&B to do, if it does.

    Raises UsageError naming a variable with a value that means nothing.
    """
    off = os.environ.get("WANDB_DISABLED", "")
    mode = os.environ.get("WANDB_MODE", "")
    if off.lower() not in WANDB_DISABLED:
        raise UsageError(f"WANDB_DISABLED is '{off}', expected true or false.")
    if mode and mode not in WANDB_MODES:
        raise UsageError(f"WANDB_MODE is '{mode}', expected {', '.join(WANDB_MODES)}.")
    if WANDB_DISABLED[off.lower()]:
        return "disabled"
    return WANDB_MODES[mode] if mode else None


def data_reference(data: Path, version: str) -> str:
    """Return a URI of raw data: the hash by which DVC knows them, if it does, and ours."""
    try:
        out = read_yaml(Path(f"{data}.dvc").read_text(encoding="utf-8"), origin="")["outs"][0]
        return f"dvc:{out['md5']}?data_version={version}"
    except (OSError, UsageError, LookupError, TypeError, UnicodeDecodeError):
        return f"neurofoundry:data/{version}"


def metric_name(name: str) -> str:
    """Return a name by which W&B can sort and filter: letters, digits and underscores.

    A slash separates sections; what follows it keeps to the same pattern.
    """
    parts = [re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in name.split("/")]
    return "/".join(part if re.match(r"[A-Za-z_]", part) else f"_{part}" for part in parts)


def public(values: Any) -> Any:
    """Return parameters in which a value that names a file is '…'."""
    if isinstance(values, Mapping):
        return {
            name: "…" if name in PRIVATE and value else public(value)
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [public(value) for value in values]
    return "…" if isinstance(values, str) and ("/" in values or "\\" in values) else values
