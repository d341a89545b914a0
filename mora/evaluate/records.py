"""Rows of an evaluation set: from a file in the data folder when it lies there, from the hub otherwise."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.data.records import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """Where a set may come from. `file` is relative to the data folder; `hub` is None where only local records exist."""

    file: str
    fields: tuple[str, ...]
    hub: str | None = None
    config: str | None = None
    split: str = "test"


def data_folder(data_dir: str | None = None) -> Path | None:
    """`data_dir`, else MORA_DATA_DIR, else None."""
    chosen = data_dir or os.environ.get("MORA_DATA_DIR")
    return Path(chosen) if chosen else None


def rows(source: Source, data_dir: str | None = None) -> list[Row]:
    """All rows, with `source.fields` in each of them.

    Raises: DataError.
    """
    folder = data_folder(data_dir)
    if folder is not None and (folder / source.file).is_file():
        path = folder / source.file
        return check(list(read(path)), source.fields, str(path))
    if source.hub is None:
        raise DataError(_missing(source, folder))
    import datasets

    name = f"{source.hub} {source.config or ''} {source.split}".replace("  ", " ")
    try:
        found = datasets.load_dataset(source.hub, source.config, split=source.split)
    except (OSError, ValueError) as error:  # no network and no cached copy, or no such set
        raise DataError(f"{name}: {' '.join(str(error).split())[:160]}; {_missing(source, folder)}") from error
    return check([dict(row) for row in found], source.fields, name)


def read(path: Path) -> Iterator[Row]:
    """Rows of a .json array, .jsonl, or .csv with a header; .zst and .gz are unpacked on the way.

    Raises: DataError with the line.
    """
    text = read_text(path)
    kind = next(suffix for suffix in reversed(path.suffixes) if suffix not in (".zst", ".gz"))
    if kind == ".csv":
        yield from csv.DictReader(io.StringIO(text))
    elif text.lstrip().startswith("["):
        yield from _parse(text, f"{path}")
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The file's text, unpacked.

    Raises: DataError for a missing, truncated or wrongly encoded file.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".zst":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True) as stream:
                raw = stream.read()
            if not raw.endswith(b"\n"):
                raise DataError(f"{path}: the last line has no end, the file is truncated; fetch it again")
        elif path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode(encoding)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: put the file there or set MORA_DATA_DIR to its folder") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not {encoding}") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: {error}; fetch it again") from error


def check(found: list[Row], fields: tuple[str, ...], where: str) -> list[Row]:
    """The rows, if there are any and every one has every field.

    Raises: DataError with the first row (from 1) and field that are wrong.
    """
    if not found:
        raise DataError(f"{where}: there are no rows")
    for number, row in enumerate(found, 1):
        for field in fields:
            if row.get(field) is None:
                raise DataError(f"{where}: row {number} has no {field!r}; it has {', '.join(map(str, row))}")
    return found


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: column {error.colno}: not JSON ({error.msg})") from error


def _missing(source: Source, folder: Path | None) -> str:
    place = f"{folder}/{source.file}" if folder else f"{source.file} in a folder that MORA_DATA_DIR names"
    return f"without the hub, put {place}, rows with {', '.join(source.fields)}"
