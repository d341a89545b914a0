"""Kept samples on disk: `samples/<task>.jsonl`, a header line and a line a document."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mora.config.seal import sealed, unsealed
from mora.io import replace_file

from .kept import Kept
from .records import DataError

ROWS = "rows_sha256"  # in a header


def write(folder: Path, kept: dict[str, Kept]) -> None:
    """Writes `folder/samples/<task>.jsonl` for every task, each whole or not at all."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for task, samples in kept.items():
        rows = [json.dumps(row) for row in samples.rows]
        header = json.dumps(sealed(samples.header | {ROWS: _digest(rows)}))
        replace_file(folder / "samples" / f"{task}.jsonl", "\n".join([header, *rows]) + "\n")


def read(folder: Path) -> dict[str, Kept]:
    """Every task's samples below `folder`.

    Raises: DataError where there are none, or damaged ones.
    """
    found = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        try:
            first, *lines = path.read_text().splitlines()
            header, rows = unsealed(json.loads(first)), [json.loads(line) for line in lines]
            if header.pop(ROWS, _digest(lines)) != _digest(lines):
                raise ValueError("its rows are not those that its digest was made of")
            if not all(isinstance(line, dict) for line in rows):
                raise ValueError("expected an object a line")
            if missing := [
                name for name in ("task", "prompts", "aggregation") if not isinstance(header.get(name), str)
            ]:
                raise ValueError(f"no text as {missing[0]} in the first line")
            found[path.stem] = Kept(header, rows)
        except (OSError, ValueError, AttributeError, RecursionError) as error:  # of json, or for want of a header
            raise DataError(f"{path} is no file of samples, or was cut ({error}): score the model again") from error
    if not found:
        raise DataError(f"{folder}/samples holds no samples: give the folder of a run or of `python -m mora.evaluate`")
    return found


def _digest(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
