"""Pseudonyms of patients, made with a secret that only their hospital has."""

from __future__ import annotations

import hmac
import os

from neurofoundry.errors import UsageError

KEY = "NEUROFOUNDRY_PSEUDONYM_KEY"
"""The environment variable that holds the secret."""


def read_key(dataset: str) -> bytes:
    """Return the secret. Raises UsageError, naming the DICOM ``dataset`` that needs it."""
    key = os.environ.get(KEY, "").strip()
    if len(key) < 16:
        raise UsageError(
            f"The dataset '{dataset}' is DICOM, so its patients need pseudonyms, and the "
            f"environment variable {KEY} is {'too short' if key else 'not set'} (expected at least "
            f"16 characters). Make a key once with `export {KEY}=$(openssl rand -hex 32)`, keep it "
            "secret, and keep it: another key gives other pseudonyms and other splits."
        )
    return key.encode()


def pseudonym(key: bytes, identifier: str) -> str:
    """Return the first 12 hex digits of HMAC-SHA256(key, identifier)."""
    return hmac.new(key, identifier.encode("utf-8", "surrogateescape"), "sha256").hexdigest()[:12]
