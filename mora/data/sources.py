"""Where raw rows come from: the hub, local files of the same schema, or made on the spot. Every file has a sha256."""

from __future__ import annotations

import csv
import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mora.config.schema import Corpus, FileSource, HubSource, Source, SyntheticSource

from . import synthetic
from .records import DataError, Record

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Rows:
    """The rows of one source: its files in order, what they are, and how to read them again."""

    format: str
    paths: tuple[Path, ...]
    max_rows: int | None
    facts: dict[str, Any]  # for the result: where from, which commit, sha256 of every file
    made: SyntheticSource | None = None

    def __iter__(self) -> Iterator[Record]:
        """Raises: DataError for a file that is damaged or a line that is no JSON object."""
        return islice(self._all(), self.max_rows)

    def _all(self) -> Iterator[Record]:
        if self.made is not None:
            yield from synthetic.rows(self.made)
        for path in self.paths:
            yield from read(path)


def cache_dir() -> Path:
    """MORA_CACHE_DIR, or ~/.cache/mora."""
    return Path(os.environ.get("MORA_CACHE_DIR", Path.home() / ".cache" / "mora"))


def data_dir() -> Path | None:
    """MORA_DATA_DIR, where local data lie; None where it is not set."""
    chosen = os.environ.get("MORA_DATA_DIR")
    return Path(chosen) if chosen else None


def resolve(corpus: Corpus) -> list[Rows]:
    """The corpus's local files where all are there, else its sources. Raises: DataError."""
    chosen: list[Source] = list(corpus.sources)
    if corpus.local and all(_match(source.files) for source in corpus.local):
        chosen = list(corpus.local)
    return [resolve_source(source) for source in chosen]


def resolve_source(source: Source) -> Rows:
    """Raises: DataError where files are missing, damaged or not the pinned ones, or the hub cannot be reached."""
    if isinstance(source, SyntheticSource):
        return Rows(source.format, (), None, {"synthetic": source.model_dump()}, source)
    if isinstance(source, FileSource):
        paths = _match(source.files)
        if not paths:
            raise DataError(_missing(source.files))
        facts: dict[str, Any] = {"files": source.files, "sha256": {p.name: sha256(p) for p in paths}}
        if source.sha256 is not None and list(facts["sha256"].values()) != [source.sha256]:
            raise DataError(f"{source.files} has sha256 {facts['sha256']}, expected {source.sha256}")
    else:
        paths, commit = hub_files(source)
        facts = {"hub": source.id, "commit": commit, "sha256": {p.name: sha256(p) for p in paths}}
    facts["max_rows"] = source.max_rows
    return Rows(source.format, tuple(paths), source.max_rows, facts)


def hub_files(source: HubSource) -> tuple[list[Path], str]:
    """The source's files, from MORA_DATA_DIR/<id> where they are, else from the hub; and the commit, or "local"."""
    local = _match(f"{source.id}/{source.files}")
    if local:
        return local, "local"
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            source.id, repo_type="dataset", revision=source.revision, allow_patterns=[source.files]
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{source.id} cannot be had from the hub ({reason}): put its {source.files} into "
            f"{data_dir() or '$MORA_DATA_DIR'}/{source.id}/ and set MORA_DATA_DIR, or log in where it is gated"
        ) from error
    paths = sorted(p for p in Path(folder).glob(source.files) if p.is_file())
    if not paths:
        raise DataError(f"{source.id} at revision {source.revision} has no files {source.files}")
    return paths, Path(folder).name


def _match(pattern: str) -> list[Path]:
    """Files by a glob; an absolute one, or one under MORA_DATA_DIR."""
    path = Path(pattern)
    base = Path(path.anchor) if path.is_absolute() else data_dir()
    if base is None:
        return []
    relative = str(path.relative_to(path.anchor)) if path.is_absolute() else pattern
    return sorted(p for p in base.glob(relative) if p.is_file())


def _missing(pattern: str) -> str:
    if Path(pattern).is_absolute() or data_dir() is not None:
        return f"no file matches {pattern if Path(pattern).is_absolute() else data_dir()}/{pattern}".replace("//", "/")
    return f"{pattern}: set MORA_DATA_DIR to the folder that holds it"


def sha256(path: Path) -> str:
    """Of a file's bytes; remembered in the cache under path, size and time of change, as files may be large."""
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    known = cache_dir() / "sha256.txt"
    known.parent.mkdir(parents=True, exist_ok=True)
    with open(known, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        lines = [line for line in file.read().splitlines() if line.startswith(f"{json.dumps(key)} ")]
        if lines:
            return lines[-1].rsplit(" ", 1)[1]
        with open(path, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        file.write(f"{json.dumps(key)} {digest}\n")
    return digest


def read(path: Path) -> Iterator[Record]:
    """The rows of a .jsonl, .json (an array too), .parquet, .csv or .tsv file, the text ones also as .gz or .zst.

    Raises: DataError naming file and line.
    """
    kind = path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1]
    if kind == "parquet":
        yield from _parquet(path)
    elif kind == "jsonl" or (kind == "json" and not _is_array(path)):
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield Record(f"{path}:{number}", _object(line, f"{path}:{number}"))
    elif kind == "json":
        rows = _json(b"".join(_chunks(path)), str(path))
        for number, row in enumerate(rows, 1):
            yield Record(f"{path}, row {number}", _checked(row, f"{path}, row {number}"))
    elif kind in ("csv", "tsv"):
        text = (_decoded(line, f"{path}:{n}") for n, line in enumerate(_lines(path), 1))
        for number, row in enumerate(csv.DictReader(text, delimiter="\t" if kind == "tsv" else ","), 2):
            yield Record(f"{path}:{number}", row)
    else:
        raise DataError(f"{path}: cannot read files of this kind; expected .jsonl, .json, .parquet, .csv, .gz or .zst")


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{path}, row {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file ({error})") from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file. A stream that ends early is an error, not an end."""
    if path.suffix == ".zst":
        yield from _zst(path)
        return
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # noqa: SIM115
    with opened as file:
        try:
            while block := file.read(BLOCK_BYTES):
                yield block
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut off ({error})") from error


def _zst(path: Path) -> Iterator[bytes]:
    import zstandard

    with open(path, "rb") as file:
        stream, waiting = zstandard.ZstdDecompressor().decompressobj(), b""
        started = False
        try:
            while block := waiting or file.read(BLOCK_BYTES):
                if stream.eof:  # the next of several frames
                    stream = zstandard.ZstdDecompressor().decompressobj()
                started = True
                yield stream.decompress(block)
                waiting = stream.unused_data if stream.eof else b""
        except zstandard.ZstdError as error:
            raise DataError(f"{path}: damaged ({error})") from error
        if started and not stream.eof:
            raise DataError(f"{path}: the compressed stream is cut off")


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _is_array(path: Path) -> bool:
    return next((c for c in _chunks(path) if c.strip()), b"").lstrip().startswith(b"[")


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")  # Financial PhraseBank is in Latin-1


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    return _checked(_json(line, where), where)


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: is {row!r:.40}, expected an object with fields")
    return row
