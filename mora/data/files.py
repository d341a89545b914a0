"""Files of rows, read as needed: JSON, JSON lines, CSV, parquet and plain text. .gz and .zst are decompressed."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mora.errors import DataError, one_line

from .records import Record

BLOCK_BYTES = 1 << 20
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # the first half of a surrogate pair in JSON; the other may follow
_HALF = re.compile("[\ud800-\udfff]")
csv.field_size_limit(2**31 - 1)  # a field may be a whole article; Python's own limit is 131,072 characters


def read_rows(path: Path, encoding: str = "utf-8", delimiter: str | None = None) -> Iterator[Record]:
    """Yield the rows of a .jsonl, .json (an array, too), .parquet, .csv or .tsv file, which may be a .gz or .zst.

    Args:
        path: The file. A CSV file has a header line.
        encoding: The encoding of a CSV file; other files are UTF-8.
        delimiter: The delimiter of a CSV file. None means a comma, in .tsv a tab.

    Raises:
        DataError: The file is damaged or of another kind; the error names file and line.
    """
    kind = path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1]
    if kind == "parquet":
        yield from _parquet(path)
    elif kind == "jsonl" or (kind == "json" and not _is_array(path)):
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                where = f"{path}:{number}"
                yield record_of(where, _json(line, where))
    elif kind == "json":
        for number, row in enumerate(read_json(path), 1):
            yield record_of(f"{path}, row {number}", row)
    elif kind in ("csv", "tsv"):
        cells = read_cells(path, encoding, delimiter or ("\t" if kind == "tsv" else ","))
        _, header = next(cells, ("", []))
        for where, values in cells:
            if len(values) != len(header):
                raise DataError(
                    f"{where}: {len(values)} fields, expected {len(header)}: {' '.join(', '.join(header).split()):.200}"
                )
            yield Record(where, dict(zip(header, values, strict=True)))
    else:
        raise DataError(f"{path}: cannot read files of this kind; expected .jsonl, .json, .parquet, .csv, .gz or .zst")


def read_cells(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> Iterator[tuple[str, list[str]]]:
    """Yield the records of a CSV file as (file and last line of the record, fields). A quoted field may have line breaks.

    Raises:
        DataError: The file is not CSV in this encoding.
    """
    lines = (_decoded(line, encoding, f"{path}:{n}") for n, line in enumerate(_lines(path), 1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}:{reader.line_num}", cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{begin}: not CSV ({error})") from error


def read_json(path: Path) -> Any:
    """Return the JSON value that a file consists of. Raises DataError if it is damaged."""
    return _json(b"".join(_chunks(path)), str(path))


def read_text(path: Path) -> str:
    """Return the text of a whole UTF-8 file. Raises DataError if it is damaged."""
    return _decoded(b"".join(_chunks(path)), "utf-8", str(path))


def record_of(where: str, row: Any) -> Record:
    """Return a row with its place. Raises DataError if it is not an object."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {row!r:.40}, expected an object with fields")
    return Record(where, row)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{path}, row {number}", row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a text that is not UTF-8
        place = f"{path}, after row {number}" if number else str(path)
        raise DataError(f"{place}: not a whole parquet file ({one_line(error)})") from error


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, without the byte order mark that some programs begin UTF-8 with."""
    chunks = _unpacked(path)
    yield next(chunks, b"").removeprefix(codecs.BOM_UTF8)
    yield from chunks


def _unpacked(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file. Raises DataError if it ends early."""
    try:
        if path.suffix == ".zst":
            yield from _zst(path)
            return
        opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
        with opened as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: put the file there or set MORA_DATA_DIR to its folder") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut off ({error})") from error


def _zst(path: Path) -> Iterator[bytes]:
    import zstandard

    with open(path, "rb") as file:
        stream, waiting = zstandard.ZstdDecompressor().decompressobj(), b""
        started = False
        try:
            while block := waiting or file.read(BLOCK_BYTES):
                if stream.eof:  # another frame follows
                    stream = zstandard.ZstdDecompressor().decompressobj()
                started = True
                yield stream.decompress(block)
                waiting = stream.unused_data if stream.eof else b""
        except zstandard.ZstdError as error:
            raise DataError(f"{path}: damaged ({error})") from error
        if started and not stream.eof:
            raise DataError(f"{path}: the compressed stream is cut off")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines with their line ends, which CSV needs if a field has line breaks."""
    rest = b""
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _is_array(path: Path) -> bool:
    return next((c for c in _chunks(path) if c.strip()), b"").lstrip().startswith(b"[")


def _decoded(data: bytes, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not {encoding}") from error


def _json(data: bytes, where: str) -> Any:
    try:
        value = json.loads(data.decode())
        broken = _half_pair(value) if _ESCAPED_HALF.search(data) else None
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply to be read") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number with thousands of digits
        raise DataError(f"{where}: not JSON ({error})") from error
    if broken is not None:
        raise DataError(f"{where}: field {broken!r} holds half of a surrogate pair, no character: mend the text")
    return value


def _half_pair(value: Any, field: str = "") -> str | None:
    """Return the field, such as `messages[0].content`, of the first text with half a surrogate pair; None if there is none.

    No tokenizer accepts such a text.
    """
    if isinstance(value, str):
        return field if _HALF.search(value) else None
    if isinstance(value, dict):
        inside = [(f"{field}.{key}".lstrip("."), each) for key, each in value.items()]
        inside += [(name, name) for name, _ in inside]
    else:
        inside = [(f"{field}[{i}]", each) for i, each in enumerate(value)] if isinstance(value, list) else []
    return next((half for name, each in inside if (half := _half_pair(each, name)) is not None), None)
