"""Sealed JSON: among its values is a digest of the others, which tells whether the file is whole."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FIELD = "sha256"


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values in JSON's form, with their digest added."""
    plain = json.loads(json.dumps(values))
    return plain | {FIELD: _digest(plain)}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without their digest. Files from before digests existed are taken as they are.

    Raises:
        ValueError: The digest is that of other values.
    """
    kept = {key: value for key, value in values.items() if key != FIELD}
    if FIELD in values and values[FIELD] != _digest(kept):
        raise ValueError("its values are not those that its digest was made of")
    return kept


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
