"""Logged samples on disk: `samples/<task>.jsonl`, with a header line and one line per document."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from mora.config.seal import sealed, unsealed
from mora.errors import DataError
from mora.io import replace_file

from .logged import LoggedSamples

ROWS = "rows_sha256"  # a field of the header


def write(folder: Path, logged: dict[str, LoggedSamples]) -> None:
    """Write `folder/samples/<task>.jsonl` for every task, each atomically."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for task, samples in logged.items():
        rows = [json.dumps(row) for row in samples.rows]
        header = json.dumps(sealed(samples.header | {ROWS: _digest(rows)}))
        replace_file(folder / "samples" / f"{task}.jsonl", "\n".join([header, *rows]) + "\n")


def read(folder: Path) -> dict[str, LoggedSamples]:
    """Read every task's samples below `folder`. Raises DataError if there are none, or some are damaged."""
    samples = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        try:
            first, *lines = path.read_text().splitlines()
            header, rows = unsealed(json.loads(first)), [json.loads(line) for line in lines]
            if header.pop(ROWS, _digest(lines)) != _digest(lines):
                raise ValueError("its rows do not match its digest")
            if not all(isinstance(line, dict) for line in rows):
                raise ValueError("expected one object per line")
            if missing := [
                name for name in ("task", "prompts", "aggregation") if not isinstance(header.get(name), str)
            ]:
                raise ValueError(f"no text as {missing[0]} in the first line")
            samples[path.stem] = LoggedSamples(header, rows)
        except (OSError, ValueError, AttributeError, RecursionError) as error:  # of json, or as the header is missing
            raise DataError(
                f"{path} is not a file of samples, or is truncated ({error}): score the model again"
            ) from error
    if not samples:
        raise DataError(f"{folder}/samples holds no samples: give the folder of a run or of `python -m mora.evaluate`")
    return samples


def _digest(rows: list[str]) -> str:
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]
