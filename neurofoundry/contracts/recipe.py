"""preprocess in plan.json: how a scan's volume is made, in words that nothing runs or opens.

A plan comes from whoever made the weights. It can describe a mask command and a template, by name
and hash; the command and the folder themselves are the user's to give.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from neurofoundry.params import Section

NOT_IN_RECIPE = ("outliers", "overrides", "device", "batch", "template")
"""Parameters of preprocess that compare volumes, or name files or hardware: they do not decide how
a single volume is made."""

PATHS = ("template", "overrides")
"""Parameters of preprocess that name files."""

WORD = re.compile(r"[a-z0-9]{1,64}")
"""All that a text in a recipe can be: a choice, such as zscore, or a hash. Never a path."""

LARGEST = 1e30
"""What no number of a recipe reaches; whole numbers in JSON can be too large for any float."""

LONGEST = 86_400.0
"""Seconds that a mask command may be given at most."""


class MaskProgram(Section):
    """The mask command that volumes were made with, without the command."""

    program: str = Field(pattern=r"^[A-Za-z0-9_.+-]{1,64}$")
    """The name of its program."""
    command_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The SHA-256 of its text."""
    timeout: float = Field(default=600, gt=0, le=LONGEST)
    """Seconds after which it was stopped."""


def describe_command(command: str, timeout: float) -> dict[str, Any]:
    """Return the `MaskProgram` of a command, as plain values."""
    # Not shlex: what is described may be anybody's, and may not even be a command.
    first = (command.split() or ["unknown"])[0].rpartition("/")[2]
    program = re.sub(r"[^A-Za-z0-9_.+-]", "_", first)[:64] or "unknown"
    sha256 = hashlib.sha256(command.encode(errors="surrogatepass")).hexdigest()
    return {"program": program, "command_sha256": sha256, "timeout": timeout}


def describe(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of ``preprocess`` of params.yaml, as plain values."""
    kept = {name: value for name, value in params.items() if name not in NOT_IN_RECIPE}
    described: dict[str, Any] = _without_command(kept)
    return described


def _without_command(recipe: Any) -> Any:
    """Put the description of a mask command, which older plans hold, in its place."""
    mask = recipe.get("mask") if isinstance(recipe, dict) else None
    if not isinstance(mask, dict) or not isinstance(mask.get("command"), str):
        return recipe
    described = describe_command(mask["command"], mask.get("timeout", 600.0))
    return {**recipe, "mask": described}


def _check(recipe: dict[str, Any]) -> dict[str, Any]:
    for name in PATHS:
        if recipe.get(name) is not None:
            raise ValueError(
                f"{name} names a file or folder, which a plan cannot: nothing that somebody else "
                "names is opened here"
            )
    for name, value in recipe.items():
        if name == "mask" and value is not None:
            _check_mask(value)
        elif name == "standard" and not _is_numbers(value):
            raise ValueError(f"standard is {value!r:.80}, expected landmarks of nyul: numbers")
        else:
            _check_value(name, value)
    return recipe


def _check_mask(value: Any) -> None:
    try:
        MaskProgram.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("mask", *first["loc"])))
        raise ValueError(f"{where}: {first['msg']}") from error


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) in (int, float) for each in value)


def _check_value(name: str, value: Any) -> None:
    """Raise ValueError unless a value is made of finite numbers and words."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_value(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_value(name, inner)
    elif isinstance(value, str):
        if not WORD.fullmatch(value):
            raise ValueError(
                f"{name} is {value!r:.80}, expected a number, or a word of small letters and "
                "digits: a plan can name no command and no file"
            )
    elif value is not None and not abs(value) < LARGEST:
        raise ValueError(f"{name} is {value!r:.80}, expected a finite number")


Recipe = Annotated[dict[str, Any], BeforeValidator(_without_command), AfterValidator(_check)]
"""``preprocess`` of params.yaml without ``NOT_IN_RECIPE``, with `MaskProgram` for the mask command,
``template_sha256`` if the template is not nilearn's, and ``standard``, the landmarks of nyul."""
