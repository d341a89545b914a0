"""Rows of an evaluation set, from a file in the data folder or the hub, and their fields, each with its place in errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora import io
from mora.data.files import read_json, read_rows, record_of
from mora.data.records import Record, field_error, field_names
from mora.errors import DataError

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The places of a data set. `file` is relative to the data folder; `hub` is None if only local records exist."""

    file: str
    fields: tuple[str, ...]
    hub: str | None = None
    config: str | None = None
    split: str = "test"


def data_folder(data_dir: str | None = None) -> Path | None:
    """Return `data_dir`, else MORA_DATA_DIR, else None."""
    return Path(data_dir) if data_dir else io.data_dir()


def raw_folder(data_dir: str | None) -> Path:
    """Return the data folder of a task that has no other source. Raises DataError if none is set."""
    folder = data_folder(data_dir)
    if folder is None:
        raise DataError("a _local task reads raw records: set MORA_DATA_DIR or --data-dir to their folder")
    return folder


def rows(source: Source, data_dir: str | None = None, streaming: bool = False) -> Iterator[Record]:
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
        dataset = datasets.load_dataset(source.hub, source.config, split=source.split, streaming=streaming)
    except (OSError, ValueError) as error:  # no network and no cached copy, or no such set
        raise DataError(f"{name}: {' '.join(str(error).split())[:160]}; {_missing(source, folder)}") from error
    records = (Record(f"{name}, row {number}", dict(row)) for number, row in enumerate(dataset, 1))
    return check(records, source.fields, name)


def check(records: Iterable[Record], fields: tuple[str, ...], where: str) -> Iterator[Record]:
    """Yield the rows, once checked that there are any and that each has every field.

    Raises:
        DataError: The first place and field that are wrong.
    """
    empty = True
    for record in records:
        empty = False
        for field in fields:
            if record.row.get(field) is None:
                raise DataError(f"{record.where}: field {field!r} is missing; the row has {field_names(record)}")
        yield record
    if empty:
        raise DataError(f"{where}: there are no rows")


def keyed(path: Path) -> Iterator[Record]:
    """Yield the rows of a JSON file that holds them by their ids. Raises DataError."""
    whole = json_object(path)
    return (object_field(whole, key) for key in whole.row)


def json_object(path: Path) -> Record:
    """Read a whole JSON file. Raises DataError if it is not an object."""
    return record_of(str(path), read_json(path))


def object_field(record: Record, field: str) -> Record:
    """Return the object in a field. Raises DataError."""
    value = record.row.get(field)
    if not isinstance(value, dict):
        raise field_error(record, field, "an object with fields")
    return Record(f"{record.where}, {field}", value)


def object_list(record: Record, field: str) -> list[Record]:
    """Return the objects of a list in a field, which may be empty. Raises DataError."""
    value = record.row.get(field)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise field_error(record, field, "a list of objects with fields")
    return [Record(f"{record.where}, {field}[{i}]", row) for i, row in enumerate(value)]


def text(record: Record, field: str, empty: bool = False) -> str:
    """Return the text in a field. Raises DataError if it is not a text, or is blank unless `empty`."""
    value = record.row.get(field)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise field_error(record, field, "a text" if empty else "a text that is not empty")
    return value


def texts(record: Record, field: str) -> list[str]:
    """Return the texts in a field. Raises DataError if it is not a list of texts, or is empty."""
    value = record.row.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise field_error(record, field, "a list of texts")
    return value


def gold_text(value: Any) -> str | None:
    """Return a gold answer as text, which JSON may hold as a number; None if it is neither."""
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if type(value) in (int, float) and math.isfinite(value) else None


def require_at_least(shots: Sized, k: int, where: str) -> None:
    """Raise DataError if there are fewer than `k` examples to show."""
    if len(shots) < k:
        raise DataError(f"{where}: {len(shots)} examples to take {k} shots from: put the whole file there")


def _missing(source: Source, folder: Path | None) -> str:
    place = f"{folder}/{source.file}" if folder else f"{source.file} in a folder that MORA_DATA_DIR names"
    return f"without the hub, put {place}, rows with {', '.join(source.fields)}"
