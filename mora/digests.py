"""The digests of evidence that is not sealed and not named by its result: `results/digests.txt`, which `sha256sum -c` reads.

It names the documents' scores and the spectra of committed results, early results and benchmarks, which are not sealed,
and early logs, whose results do not have their digest. A file that it does not name, as of a new run, is taken as it is.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path

from mora.errors import DamagedFileError
from mora.io import file_digest, locked, replace_file

FILE = "digests.txt"
LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def check(path: Path) -> None:
    """Raise DamagedFileError if the file, in a folder beside `digests.txt`, has another digest than it has there."""
    digests = _file_of(path)
    expected = read(digests).get(_name(path))
    if expected is not None and _digest(path, path.stat().st_mtime_ns) != expected:
        raise DamagedFileError(
            f"{path} is damaged: it is not the file that {digests} has the sha256 of; restore it, or, if its run was made "
            "again, remove its line there"
        )


def add(path: Path) -> None:
    """Write the file's digest into `digests.txt`, in place of the one that is there."""
    _change(path, file_digest(path))


def forget(path: Path) -> None:
    """Remove the file's line from `digests.txt`, as its run is made again."""
    if _name(path) in read(_file_of(path)):
        _change(path, None)


def read(digests: Path) -> dict[str, str]:
    """Return the digests by name; none if there is no file. Raises DamagedFileError if a line is not one of sha256sum."""
    return _read(digests, digests.stat().st_mtime_ns) if digests.is_file() else {}


def _change(path: Path, digest: str | None) -> None:
    digests = _file_of(path)
    with locked(digests.parent):
        lines = _parsed(digests) if digests.is_file() else {}
        lines.pop(_name(path), None)
        if digest is not None:
            lines[_name(path)] = digest
        replace_file(digests, "".join(f"{lines[name]}  {name}\n" for name in sorted(lines)))


def _file_of(path: Path) -> Path:
    return path.parent.parent / FILE


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@cache
def _digest(path: Path, changed: int) -> str:
    return file_digest(path)


@lru_cache(maxsize=4)
def _read(digests: Path, changed: int) -> dict[str, str]:
    return _parsed(digests)


def _parsed(digests: Path) -> dict[str, str]:
    lines = {}
    for number, text in enumerate(digests.read_text(errors="replace").splitlines(), 1):
        line = LINE.fullmatch(text)
        if line is None:
            raise DamagedFileError(
                f"{digests}:{number} is damaged: expected a sha256, two spaces and a path, as of sha256sum; restore it"
            )
        lines[line[2]] = line[1]
    return lines
