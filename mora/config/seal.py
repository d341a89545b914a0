"""JSON that knows whether it is whole: among its values stands a digest of the others."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FIELD = "sha256"


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON has them, with their digest."""
    plain = json.loads(json.dumps(values))
    return plain | {FIELD: _digest(plain)}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values without their digest. Files from before there was one are taken as they are.

    Raises:
        ValueError: If the digest is that of other values.
    """
    kept = {key: value for key, value in values.items() if key != FIELD}
    if FIELD in values and values[FIELD] != _digest(kept):
        raise ValueError("its values are not those that its digest was made of")
    return kept


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
