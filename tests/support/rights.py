"""What the Role of docs/kubeflow-rbac.yaml allows, decided as the API server of Kubernetes does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MANIFEST = Path(__file__).resolve().parents[2] / "docs/kubeflow-rbac.yaml"

VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get"}


class Call(NamedTuple):
    """A request to the API, as its authorizer sees it."""

    group: str
    resource: str
    verb: str
    name: str = ""


def documents() -> dict[str, Any]:
    """Return the objects of the manifest by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def call_of(method: str, path: str) -> Call:
    """Return the call that a request within a namespace is."""
    match = re.fullmatch(
        r"/(?:api/v1|apis/(?P<group>[^/]+)/[^/]+)/namespaces/[^/]+/(?P<resource>[^/]+)"
        r"(?:/(?P<name>[^/]+)(?:/(?P<sub>[^/]+))?)?",
        path,
    )
    assert match, path
    resource = match["resource"] + (f"/{match['sub']}" if match["sub"] else "")
    verb = "list" if method == "GET" and not match["name"] else VERBS[method]
    return Call(match["group"] or "", resource, verb, match["name"] or "")


def allows(call: Call) -> bool:
    """Say whether a rule of the Role allows a call."""
    return any(
        call.group in rule["apiGroups"]
        and call.resource in rule["resources"]
        and call.verb in rule["verbs"]
        and call.name in rule.get("resourceNames", [call.name])
        for rule in documents()["Role"]["rules"]
    )
