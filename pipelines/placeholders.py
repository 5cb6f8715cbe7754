"""What a cluster puts in place of the placeholders of a step's command, and nothing else.

Transcribed from the backend of Kubeflow Pipelines 2.17: the driver (backend/src/v2/driver/util.go,
resolveContainerArgs) replaces inputs, then the launcher (backend/src/v2/component/launcher_v2.go,
compileCmdAndArgs and getPlaceholders) the rest. kfp's local runners resolve more, such as
dsl.ConcatPlaceholder (kubeflow/pipelines#9486): a pipeline that runs there can fail on a cluster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

RESOLVED = re.compile(
    r"\{\{\$(?:"
    r"|\.inputs\.parameters\['[^']+'\]"
    r"|\.(?:inputs|outputs)\.artifacts\['[^']+'\]\.(?:path|uri)"
    r"|\.outputs\.parameters\['[^']+'\]\.output_file"
    r")\}\}"
)
"""The executor input, and what it holds by name."""

UNRESOLVED = re.compile(r"\{\{\$|\{\"(?:Concat|IfPresent)\":")
"""The beginning of a placeholder. The driver resolves only some of {"IfPresent": …}."""

IMAGE = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
"""The only placeholder of an image and of resources, where it must be the whole text and of type
STRING: others are read as empty (driver/util.go, resolvePodSpecInputRuntimeParameter)."""

SCHEMES = ("gs", "minio", "s3")
"""Storage that the launcher mirrors at /SCHEME/… (launcher_v2.go, LocalPathForURI; gs is gcs)."""


def unresolved(word: str) -> str:
    """Return the first placeholder in ``word`` that no cluster resolves, or nothing."""
    rest = RESOLVED.sub("", word)
    start = UNRESOLVED.search(rest)
    return rest[start.start() :] if start else ""


def resolve(words: Sequence[str], executor_input: Mapping[str, Any]) -> list[str]:
    """Return the command and arguments that a container gets. Raises ValueError for a leftover.

    The program, the first word, is taken as it is (compileCmdAndArgs discards its replacement).
    """
    program, *arguments = words
    for word in words:
        if (left := unresolved(word)) or (word == program and UNRESOLVED.search(word)):
            raise ValueError(f"{word}: no cluster resolves {left or word}.")
    driven = [_drive(word, executor_input) for word in arguments]
    known = {"{{$}}": json.dumps(executor_input, allow_nan=False), **_placeholders(executor_input)}
    launched = []
    for word in driven:
        for placeholder, value in known.items():
            word = word.replace(placeholder, value)
        launched.append(word)
    return [program, *launched]


def _drive(word: str, executor_input: Mapping[str, Any]) -> str:
    """Replace the inputs of an argument, as the driver does unless it holds an output."""
    if "$.outputs" in word:
        return word
    values = executor_input.get("inputs", {}).get("parameterValues", {})

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"{word}: there is no input {match[1]}.")
        return _text(values[match[1]])

    return IMAGE.sub(value, word)


def _placeholders(executor_input: Mapping[str, Any]) -> dict[str, str]:
    """Return what the launcher replaces, wherever it stands in a word."""
    inputs, outputs = executor_input.get("inputs", {}), executor_input.get("outputs", {})
    known = {}
    for side, held in (("inputs", inputs), ("outputs", outputs)):
        for name, listed in held.get("artifacts", {}).items():
            for artifact in listed["artifacts"][:1]:
                known[f"{{{{$.{side}.artifacts['{name}'].uri}}}}"] = artifact["uri"]
                known[f"{{{{$.{side}.artifacts['{name}'].path}}}}"] = local_path(artifact["uri"])
    for name, value in inputs.get("parameterValues", {}).items():
        known[f"{{{{$.inputs.parameters['{name}']}}}}"] = _text(value)
    for name, output in outputs.get("parameters", {}).items():
        known[f"{{{{$.outputs.parameters['{name}'].output_file}}}}"] = output["outputFile"]
    return known


def local_path(uri: str) -> str:
    """Return where the launcher puts an artifact; a path of a local runner stays what it is."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme not in SCHEMES:
        raise ValueError(f"{uri}: the launcher knows {', '.join(SCHEMES)}.")
    return f"/{'gcs' if scheme == 'gs' else scheme}/{rest}"


def _text(value: Any) -> str:
    """Return a value as a word: JSON but for texts, nothing for null, and no 4.0 for 4."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
