"""Damage every file of a scenario in turn. The file must be named in one line or made again, and nothing else may change."""

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
from .scenarios import Scenario

RUN_ID = re.compile(r"(uuid|metamath)-[\w.-]*?-s\d+-[0-9a-f]{10}|(?<=-)[0-9a-f]{16}(?=/)")


@dataclass
class Damaged:
    """The outcomes of damaging one file: how often the scenario ended as if undamaged, how often the file was refused."""

    file: str
    damages: int = 0
    healed: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def damage_files(
    scenario: Scenario, scratch: Path, wanted: Callable[[str], bool], hows: tuple[str, ...] = HOWS
) -> Iterator[Damaged]:
    """Damage one file of every kind in each of the ways, and resume the scenario each time. Yield the outcomes by file."""
    forked.warm()
    made, other, again = scratch / "made", scratch / "other", scratch / "again"
    scenario.other(other)
    whole = scenario.undamaged_outcome(made, again)
    shutil.rmtree(again)
    for name, file in _one_of_each_kind(scenario, made).items():
        if not wanted(name):
            continue
        damaged = Damaged(name)
        for how in hows:
            shutil.copytree(made, again)
            if damage(again / file, how, _another(made, other, file, name) if how == ANOTHER else None):
                damaged.damages += 1
                _resume(scenario, again, file, how, whole, damaged)
            shutil.rmtree(again)
        yield damaged


def _one_of_each_kind(scenario: Scenario, folder: Path) -> dict[str, Path]:
    """Return one file of each kind, by its kind: names that differ only in the run id are one kind."""
    paths: dict[str, Path] = {}
    for path in sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()):
        if not {*path.parts} & {*scenario.unread}:
            paths.setdefault(f"{scenario.name}: {RUN_ID.sub('RUN', str(path))}", path)
    return paths


def _another(made: Path, other: Path, file: Path, name: str) -> Path | None:
    """Return a file of the same kind: of another run in this folder if there is one, else of `other`."""
    kind = name.partition(": ")[2]
    for folder in (made, other):
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and RUN_ID.sub("RUN", str(relative)) == kind and (folder != made or relative != file):
                return path
    return None


def _resume(scenario: Scenario, folder: Path, file: Path, how: str, whole: Any, damaged: Damaged) -> None:
    before = _contents(folder, file)
    said = scenario.resume(folder, obey_permissions if how == NOT_READABLE else forked.as_it_is)
    outcome = scenario.outcome(folder)
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
    """Return the bytes of the files that a refusal must leave as they were.

    Left out is what every start writes (its configuration, with its own paths, what it prints, its locks), and what a run
    writes until it needs the damaged file (its answers and samples).
    """
    passed = {"config.yaml", "output.txt", "code.txt", ".lock", "known.txt", "journal-0.jsonl", without.name}
    paths = (path for path in folder.rglob("*") if path.is_file())
    files = (path for path in paths if path.name not in passed and path.parent.name != "samples")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
