"""Kept samples on disk: `samples/<task>.jsonl`, a header line and a line a document."""

from __future__ import annotations

import json
from pathlib import Path

from mora.train.log import replace_file

from .kept import Kept
from .records import DataError


def write(folder: Path, kept: dict[str, Kept]) -> None:
    """Writes `folder/samples/<task>.jsonl` for every task, each whole or not at all."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    for task, samples in kept.items():
        lines = [json.dumps(samples.header), *map(json.dumps, samples.rows)]
        replace_file(folder / "samples" / f"{task}.jsonl", "\n".join(lines) + "\n")


def read(folder: Path) -> dict[str, Kept]:
    """Every task's samples below `folder`.

    Raises: DataError where there are none, or damaged ones.
    """
    found = {}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        try:
            header, *rows = map(json.loads, path.read_text().splitlines())
            if not all(isinstance(line, dict) for line in (header, *rows)):
                raise ValueError("expected an object a line")
            if missing := [
                name for name in ("task", "prompts", "aggregation") if not isinstance(header.get(name), str)
            ]:
                raise ValueError(f"no text as {missing[0]} in the first line")
        except (ValueError, RecursionError) as error:  # of json, or for want of a header
            raise DataError(f"{path} is no file of samples, or was cut ({error}): score the model again") from error
        found[path.stem] = Kept(header, rows)
    if not found:
        raise DataError(f"{folder}/samples holds no samples: give the folder of a run or of `python -m mora.evaluate`")
    return found
