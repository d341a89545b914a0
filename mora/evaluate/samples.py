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
            first, *rows = path.read_text().splitlines()
            header = unsealed(json.loads(first))
            if header.pop(ROWS, _digest(rows)) != _digest(rows):
                raise ValueError("its rows are not those that its digest was made of")
            found[path.stem] = Kept(header, [json.loads(row) for row in rows])
        except (ValueError, AttributeError) as error:  # of json, or for want of a header
            raise DataError(f"{path} is no file of samples, or was cut ({error}): score the model again") from error
    if not found:
        raise DataError(f"{folder}/samples holds no samples: give the folder of a run or of `python -m mora.evaluate`")
    return found


def _digest(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
