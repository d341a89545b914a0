"""Rows of an evaluation set: from a file in the data folder when it lies there, from the hub otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.data import sources
from mora.data.files import read_rows
from mora.data.records import DataError, Record

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
    return Path(data_dir) if data_dir else sources.data_dir()


def raw_folder(data_dir: str | None) -> Path:
    """The data folder of a task that has no other place to read from. Raises: DataError where none is set."""
    folder = data_folder(data_dir)
    if folder is None:
        raise DataError("a _local task reads raw records: set MORA_DATA_DIR or --data-dir to their folder")
    return folder


def rows(source: Source, data_dir: str | None = None, streaming: bool = False) -> Iterator[Row]:
    """All rows, with `source.fields` in each of them. `streaming`: of a hub set, only what is read is fetched.

    Raises: DataError with the first place and field that are wrong, and where there are no rows.
    """
    folder = data_folder(data_dir)
    if folder is not None and (folder / source.file).is_file():
        path = folder / source.file
        return check(read_rows(path), source.fields, str(path))
    if source.hub is None:
        raise DataError(_missing(source, folder))
    import datasets

    name = f"{source.hub} {source.config or ''} {source.split}".replace("  ", " ")
    try:
        found = datasets.load_dataset(source.hub, source.config, split=source.split, streaming=streaming)
    except (OSError, ValueError) as error:  # no network and no cached copy, or no such set
        raise DataError(f"{name}: {' '.join(str(error).split())[:160]}; {_missing(source, folder)}") from error
    records = (Record(f"{name}, row {number}", dict(row)) for number, row in enumerate(found, 1))
    return check(records, source.fields, name)


def check(found: Iterable[Record], fields: tuple[str, ...], where: str) -> Iterator[Row]:
    """The rows, if there are any and every one has every field.

    Raises: DataError with the first place and field that are wrong.
    """
    empty = True
    for record in found:
        empty = False
        for field in fields:
            if record.row.get(field) is None:
                there = ", ".join(map(str, record.row))
                raise DataError(f"{record.where}: field {field!r} is missing; the row has {there}")
        yield record.row
    if empty:
        raise DataError(f"{where}: there are no rows")


def _missing(source: Source, folder: Path | None) -> str:
    place = f"{folder}/{source.file}" if folder else f"{source.file} in a folder that MORA_DATA_DIR names"
    return f"without the hub, put {place}, rows with {', '.join(source.fields)}"
