"""Every file of a work, damaged in turn: named in a line, or made again; never another outcome, and nothing else touched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import forked
from .damages import ANOTHER, HOWS, NOT_READABLE, damage
from .privileges import obey_permissions
from .works import Work

RUN_ID = re.compile(r"(uuid|metamath)-[\w.-]*?-s\d+-[0-9a-f]{10}|(?<=-)[0-9a-f]{16}(?=/)")


@dataclass
class Damaged:
    """What came of the damages to one file: how often the work ended as if there were none, or was refused in a line."""

    file: str
    damages: int = 0
    healed: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def damage_files(
    work: Work, scratch: Path, wanted: Callable[[str], bool], hows: tuple[str, ...] = HOWS
) -> Iterator[Damaged]:
    """One file of every kind, damaged in each of the ways, and the work then begun again."""
    forked.warm()
    made, other, again = scratch / "made", scratch / "other", scratch / "again"
    work.other(other)
    whole = work.unharmed(made, again)
    shutil.rmtree(again)
    for name, file in _one_of_each_kind(work, made).items():
        if not wanted(name):
            continue
        damaged = Damaged(name)
        for how in hows:
            shutil.copytree(made, again)
            if damage(again / file, how, _another(made, other, file, name) if how == ANOTHER else None):
                damaged.damages += 1
                _go_on(work, again, file, how, whole, damaged)
            shutil.rmtree(again)
        yield damaged


def _one_of_each_kind(work: Work, folder: Path) -> dict[str, Path]:
    """Return one file of each kind, by its kind: names that differ only in the run id are one kind."""
    paths: dict[str, Path] = {}
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        if not {*path.parts} & {*work.unread}:
            paths.setdefault(f"{work.name}: {RUN_ID.sub('RUN', str(path))}", path)
    return paths


def _another(made: Path, other: Path, file: Path, name: str) -> Path | None:
    """Return a file of the same kind, from another run of this work if there is one, else from another work."""
    kind = name.partition(": ")[2]
    for folder in (made, other):
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and RUN_ID.sub("RUN", str(relative)) == kind and (folder != made or relative != file):
                return path
    return None


def _go_on(work: Work, folder: Path, file: Path, how: str, whole: Any, damaged: Damaged) -> None:
    before = _contents(folder, file)
    said = work.go_on(folder, obey_permissions if how == NOT_READABLE else forked.as_it_is)
    outcome = work.outcome(folder)
    if "Traceback" in said:
        damaged.wrong.append(f"{how}: {said[-600:]}")
    elif outcome is None:
        damaged.refused += 1
        if file.name not in said and file.parent.name not in said:
            damaged.wrong.append(f"{how}: the file is not named: {said[-300:]}")
        touched = [name for name, data in _contents(folder, file).items() if before.get(name, data) != data]
        if touched:
            damaged.wrong.append(f"{how}: refused, and {touched} are not as they were")
    elif outcome != whole:
        damaged.wrong.append(f"{how}: another outcome than without the damage, and not a word: {said[-300:]}")
    else:
        damaged.healed += 1


def _contents(folder: Path, without: Path) -> dict[str, bytes]:
    """Return the files' bytes, of all but what every start writes, and what a run writes until it needs the file.

    The first are its configuration, with its own paths, what it prints, and its locks; the second its answers and samples.
    """
    passed = {"config.yaml", "output.txt", "code.txt", ".lock", "known.txt", "journal-0.jsonl", without.name}
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = (path for path in paths if path.name not in passed and path.parent.name != "samples")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
