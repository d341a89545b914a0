"""The answers of a long evaluation, batch by batch, so that a second start resumes where the first was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mora.config.seal import sealed, unsealed
from mora.io import replace_file


class ResponseCache:
    """The answers to batches, one JSON line each, by a hash of the batch's content.

    A batch is looked up as a whole, so a resumed evaluation has the same batches, and the same rounding, as an uninterrupted
    one. `identity` names the model and every setting that changes an answer; a file of another identity is started anew.
    """

    def __init__(self, path: Path | None, identity: str):
        self.path, self.known = path, {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(errors="replace").splitlines(keepends=True) if path.is_file() else []
        if lines and lines[0] == _line({"identity": identity}):
            intact = [lines[0], *(line for line in lines[1:] if (row := _row(line)) and self._keep(row))]
            if len(intact) == len(lines):
                return
            if len(lines) - len(intact) > 1 or lines[-1].endswith("\n"):  # only a last line may be cut, by a crash
                print(f"{path}: damaged lines are ignored, and their answers are computed again", file=sys.stderr)
            lines = intact
        else:
            lines = [_line({"identity": identity})]
        replace_file(path, "".join(lines))

    def _keep(self, row: dict[str, Any]) -> bool:
        self.known[row["key"]] = row["answer"]
        return True

    def answer(self, batch: Any, compute: Callable[[], Any]) -> Any:
        """Return the stored answer to `batch` (JSON values); if there is none, call `compute` and store its answer."""
        if self.path is None:
            return compute()
        key = hashlib.sha256(json.dumps(batch).encode()).hexdigest()
        if key not in self.known:
            self.known[key] = compute()
            with open(self.path, "a") as file:
                file.write(_line(sealed({"key": key, "answer": self.known[key]})))
                file.flush()
                os.fsync(file.fileno())
        return self.known[key]


def _row(line: str) -> dict[str, Any] | None:
    """Parse a line; return None if it is cut or damaged."""
    try:
        row = unsealed(json.loads(line))
    except (ValueError, AttributeError):
        return None
    return row if line.endswith("\n") and row.keys() == {"key", "answer"} else None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
