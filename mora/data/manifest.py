"""A manifest in a folder, with the digests of its files: it tells whether they still are as they were written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mora.config.seal import sealed, unsealed
from mora.io import replace_file, sha256

NAME = "sha256.json"


def write(folder: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Write the manifest of those files in a folder that match a pattern. It is written last."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and path.name != NAME}
    digests = {path.name: sha256(path) for path in sorted(files)}
    replace_file(folder / NAME, json.dumps(sealed(digests), indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Return a text that says what is not as it was written; None if everything is, or if there is no manifest."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        digests = unsealed(json.loads(path.read_text()))
        for name, digest in digests.items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if sha256(folder / name) != digest:
                return f"{folder / name} is damaged: it is not the file that was written"
    except (OSError, ValueError) as error:
        return f"{path} is damaged ({error})"
    return None
