"""The run's log: one JSON object per line and one line per step, in the order of the steps and never twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mora.errors import DamagedFileError
from mora.io import replace_file


class RunLog:
    """Appends rows to the file at `path`, whose first part is `text`.

    On resume, `text` is the log in the checkpoint, whatever the file holds; the steps after it are written again.
    """

    def __init__(self, path: Path, text: str = "", write: bool = True):
        """Open the log. With write=False `flush` only returns the rows, since another process writes them."""
        self.path, self.text, self._write = path, text, write
        self._waiting: list[dict[str, Any]] = []
        if write:
            replace_file(path, text)

    def add(self, **row: Any) -> None:
        """Keep a row until the next `flush`. Its values may be tensors on the GPU."""
        self._waiting.append(row)

    def flush(self) -> list[dict[str, Any]]:
        """Write the kept rows with one host sync, and return them as plain numbers.

        Raises:
            DamagedFileError: The file is not as long as what was written: another process has changed or removed it.
        """
        rows = [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in self._waiting]
        self._waiting = []
        lines = "".join(map(_line, rows))
        if self._write:
            with open(self.path, "a") as file:
                if file.tell() != len(self.text.encode()):
                    raise DamagedFileError(
                        f"{self.path} has {file.tell()} bytes, where this run wrote {len(self.text.encode())}: another "
                        "process works in the folder, or has removed it; end that one, then start the run again"
                    )
                file.write(lines)
        self.text += lines
        return rows


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, less a last line that a crash cut. Raises DamagedFileError if another line is damaged."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            rows.append(_row(line))
            if rows[-1] is None:
                raise DamagedFileError(
                    f"{path}:{number} is damaged: restore it, or repeat the run; from a checkpoint the log is rewritten"
                )
    return rows


def _row(line: str) -> Any:
    """Parse a line; return None if it is not a row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _line(row: dict[str, Any]) -> str:
    return json.dumps({k: _plain(v) for k, v in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value
