"""The run's log: one JSON object a line, one line a step, written in step order, never twice."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

from mora.config.compose import ConfigError


class RunLog:
    """Appends rows to `path`. On resume, rows after the checkpoint's step are cut off: they will be written again.

    `evaluated`: whether the evaluation of that step is among those that stay.
    """

    def __init__(self, path: Path, from_step: int, write: bool = True):
        """write=False: rows are returned by `flush`, but another process writes them."""
        self.path, self._write = path, write
        self._waiting: list[dict[str, Any]] = []
        self.evaluated = False
        if not write:
            return
        rows = [row for row in read(path) if row["step"] <= from_step]
        self.evaluated = any(row["step"] == from_step and "loss" not in row for row in rows)
        replace_file(path, "".join(_line(row) for row in rows))

    def add(self, **row: Any) -> None:
        """Keeps a row; values may still be tensors on the GPU."""
        self._waiting.append(row)

    def flush(self) -> list[dict[str, Any]]:
        """Writes what waits, in one host sync, and returns it as plain numbers."""
        rows = [{k: v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in self._waiting]
        self._waiting = []
        if self._write:
            with open(self.path, "a") as file:
                file.writelines(_line(row) for row in rows)
        return rows


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that was cut by a crash is left out. Raises: ConfigError where another is damaged."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise ValueError("expected an object a line")
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}:{number} is damaged: remove {path.parent}, and begin the run anew"
                ) from error
    return rows


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; several processes, also of several machines, may do it at once."""
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _line(row: dict[str, Any]) -> str:
    return json.dumps({k: _plain(v) for k, v in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value
