"""The sources of raw rows: the hub, local files of the same schema, or made-up rows. Every file has a sha256."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mora.config.data_schema import Corpus, FileSource, HubSource, Source, SyntheticSource
from mora.errors import DataError, MissingData
from mora.io import data_dir, sha256

from . import synthetic
from .files import read_rows
from .records import Record


@dataclass(frozen=True)
class Rows:
    """The rows of one source: its files in order, facts about them, and how to read them."""

    format: str
    paths: tuple[Path, ...]
    max_rows: int | None
    facts: dict[str, Any]  # for the result: origin, commit, and the sha256 of every file
    made: SyntheticSource | None = None

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows. Raises DataError if a file is damaged, a line is not a JSON object, or there are no rows."""
        empty = True
        for record in islice(self._all(), self.max_rows):
            empty = False
            yield record
        if empty:
            raise DataError(f"{', '.join(map(str, self.paths)):.300}: there are no rows")

    def _all(self) -> Iterator[Record]:
        if self.made is not None:
            yield from synthetic.rows(self.made)
        for path in self.paths:
            yield from read_rows(path)


def resolve(corpus: Corpus) -> list[Rows]:
    """Return the corpus's sources, with its local files instead of the hub's if all are there. Raises DataError."""
    if takes_local(corpus):
        return [resolve_source(source) for source in corpus.local]
    try:
        return [resolve_source(source) for source in corpus.sources]
    except MissingData as error:
        absent = [source.files for source in corpus.local if not match(source.files)]
        if not absent:
            raise
        raise MissingData(
            f"{error}; or put {' and '.join(absent)} into {data_dir() or '$MORA_DATA_DIR'}/, taken instead at this scale"
        ) from error


def takes_local(corpus: Corpus) -> bool:
    """Return whether local files replace the hub's, which they do if the corpus names some and all of them are there."""
    from_hub = any(isinstance(source, HubSource) for source in corpus.sources)
    return from_hub and bool(corpus.local) and all(match(source.files) for source in corpus.local)


def resolve_held_out(corpus: Corpus) -> list[Rows]:
    """Return the held-out rows that come with the local files, if those are used; else none. Raises DataError."""
    if not takes_local(corpus):
        return []
    try:
        return [resolve_source(source) for source in corpus.validation]
    except MissingData as error:
        raise MissingData(f"{error}; or hold out training documents: validation=[] beside its local files") from error


def resolve_source(source: Source) -> Rows:
    """Find the files of a source.

    Raises:
        DataError: Files are missing, damaged or not the pinned ones, or the hub cannot be reached.
    """
    if isinstance(source, SyntheticSource):
        return Rows(source.format, (), None, {"synthetic": source.model_dump()}, source)
    if isinstance(source, FileSource):
        paths = match(source.files)
        if not paths:
            raise MissingData(missing(source.files))
        facts: dict[str, Any] = {"files": source.files, "sha256": digests(paths)}
        if source.sha256 is not None and list(facts["sha256"].values()) != [source.sha256]:
            raise DataError(f"{source.files} has sha256 {facts['sha256']}, expected {source.sha256}")
    else:
        paths, commit = hub_files(source)
        facts = {"hub": source.id, "commit": commit, "sha256": digests(paths)}
    facts["max_rows"] = source.max_rows
    return Rows(source.format, tuple(paths), source.max_rows, facts)


def digests(paths: list[Path]) -> dict[str, str]:
    """Return the sha256 of every file by its name; if two have the same one, by the path below their common folder."""
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        folder = os.path.commonpath(paths)
        names = [path.relative_to(folder).as_posix() for path in paths]
    return {name: sha256(path) for name, path in zip(names, paths, strict=True)}


def hub_files(source: HubSource) -> tuple[list[Path], str]:
    """Return the source's files and their commit: from MORA_DATA_DIR/<id> (commit "local"), else from the hub.

    Raises:
        MissingData: They are in neither.
    """
    local = match(f"{source.id}/{source.files}")
    if local:
        return local, "local"
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = huggingface_hub.snapshot_download(
            source.id, repo_type="dataset", revision=source.revision, allow_patterns=[source.files]
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        raise MissingData(
            f"{source.id} cannot be had from the hub ({reason}): put its {source.files} into "
            f"{data_dir() or '$MORA_DATA_DIR'}/{source.id}/ and set MORA_DATA_DIR, or log in where it is gated"
        ) from error
    paths = sorted(p for p in Path(folder).glob(source.files) if p.is_file())
    if not paths:
        raise MissingData(f"{source.id} at revision {source.revision} has no files {source.files}")
    return paths, Path(folder).name


def match(pattern: str) -> list[Path]:
    """Return the files that match a glob, which is absolute or below MORA_DATA_DIR. Raises DataError if it is no pattern."""
    path = Path(pattern)
    base = Path(path.anchor) if path.is_absolute() else data_dir()
    if base is None:
        return []
    relative = str(path.relative_to(path.anchor)) if path.is_absolute() else pattern
    try:
        return sorted(p for p in base.glob(relative) if p.is_file())
    except (ValueError, IndexError) as error:
        raise DataError(f"files={pattern!r} is no pattern ({error}): expected one such as set/*.jsonl") from error


def missing(pattern: str) -> str:
    """Return the message for a pattern that no file matches."""
    if Path(pattern).is_absolute():
        return f"no file matches {pattern}: expected the path of a file, or a pattern such as /folder/*.jsonl"
    if (folder := data_dir()) is not None:
        return (
            f"no file matches {folder / pattern}: put it there, or set MORA_DATA_DIR to the folder that holds {pattern}"
        )
    return f"{pattern}: set MORA_DATA_DIR to the folder that holds it"
