"""The rows of an evaluation set, from files in the data folder or from the hub, and their fields. Errors name the place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import Any

from mora import io
from mora.data.records import Record, field_error, field_names
from mora.data.sets import EvaluationSet
from mora.errors import DataError

Row = dict[str, Any]


def data_folder(data_dir: str | None = None) -> Path | None:
    """Return `data_dir`, else MORA_DATA_DIR, else None."""
    return Path(data_dir) if data_dir else io.data_dir()


def raw_files(source: EvaluationSet, data_dir: str | None, split: str | None = None) -> list[Path]:
    """Return the local files of a split of a set, by default the split that is scored.

    Raises:
        DataError: No data folder is set, or one of the files is not there.
    """
    folder = data_folder(data_dir)
    if folder is None:
        raise DataError("a _local task reads raw records: set MORA_DATA_DIR or --data-dir to their folder")
    return source.required(split or source.scored, folder)


def rows(
    source: EvaluationSet, data_dir: str | None = None, split: str | None = None, streaming: bool = False
) -> Iterator[Record]:
    """Return all rows of a set, from the data folder if its files are there, else from the hub.

    Args:
        source: The set.
        data_dir: The data folder. None means MORA_DATA_DIR.
        split: The split. None means the one that is scored.
        streaming: Whether to fetch from the hub only what is read.

    Raises:
        DataError: A field is wrong (the error names the first place), there are no rows, or the hub does not answer.
    """
    folder, split = data_folder(data_dir), split or source.scored
    if paths := source.local(split, folder):
        return read(source, paths)
    if source.hub is None:
        raise DataError(_missing(source, split, folder))
    import datasets

    records: list[Iterator[Record]] = []
    for config in source.hub.configs:
        name = f"{source.hub.id} {config or ''} {split}".replace("  ", " ")
        try:
            dataset = datasets.load_dataset(
                source.hub.id, config, split=split, revision=source.hub.revision, streaming=streaming
            )
        except (OSError, ValueError) as error:  # no network and no cached copy, or no such set
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{name}: {reason}; {_missing(source, split, folder)}") from error
        records.append(_named(dataset, name))
    return check(chain.from_iterable(records), source.fields, source.hub.id)


def _named(dataset: Iterable[Any], name: str) -> Iterator[Record]:
    return (Record(f"{name}, row {number}", dict(row)) for number, row in enumerate(dataset, 1))


def read(source: EvaluationSet, paths: Sequence[Path], *more_fields: str) -> Iterator[Record]:
    """Yield the rows of local files, which must have the set's fields and `more_fields`. Raises DataError like `check`."""
    records = chain.from_iterable(source.rows(path) for path in paths)
    return check(records, (*source.fields, *more_fields), str(paths[0]))


def check(records: Iterable[Record], fields: tuple[str, ...], where: str) -> Iterator[Record]:
    """Yield the rows, and check that there are any and that each has every field.

    Raises:
        DataError: There are no rows, or a field is missing; the error names the first place.
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
    """Return a gold answer as text. In JSON it may be a number, too; None if it is neither."""
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if type(value) in (int, float) and math.isfinite(value) else None


def require_at_least(shots: Sized, k: int, where: str) -> None:
    """Raise DataError if there are fewer than `k` examples to show."""
    if len(shots) < k:
        raise DataError(f"{where}: {len(shots)} examples for {k} shots: provide the whole file")


def _missing(source: EvaluationSet, split: str, folder: Path | None) -> str:
    file = source.export.get(split, source.files[split][0])
    place = f"{folder}/{file}" if folder else f"{file} in a folder that MORA_DATA_DIR names"
    return f"without the hub, put {place}, rows with {', '.join(source.fields)}"
