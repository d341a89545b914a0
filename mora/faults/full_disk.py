"""A disk that is full from the n-th write on. It must be said in a line, leave no half-written file, and allow to resume."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from . import forked
from .scenarios import Scenario

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MARK = "full.txt"  # names what could not be written first
SAID = "No space left on device"


@dataclass
class Full:
    """The outcomes for one scenario.

    Attributes:
        work: The scenario's name.
        writes: The number of writes that were the first to fail, each in a start of its own.
        said: After how many of them it ended with a line that says so.
        passed_over: After how many of them it ended well, since it can do without that write.
        wrong: A line for every other outcome.
    """

    work: str
    writes: int = 0
    said: int = 0
    passed_over: int = 0
    wrong: list[str] = field(default_factory=list)


def fill_from(number: int, folder: Path) -> None:
    """Let this process write to `number` files and folders below `folder`; after that, every such write fails."""
    mark = os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    done, below = 0, f"{folder}/"

    def full(event: str, args: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in ("open", "os.mkdir") or not str(args[0]).startswith(below):
            return
        if os.path.isdir(args[0]) if event == "os.mkdir" else not _writes(*args[1:3]):
            return
        done += 1
        if done == number + 1:
            os.write(mark, str(args[0]).encode())
        if done > number:
            raise OSError(errno.ENOSPC, SAID, str(args[0]))

    sys.addaudithook(full)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & {*"wax+"}) or bool(flags & WRITES)


def fill_disks(scenario: Scenario, scratch: Path, every: int = 1) -> Iterator[Full]:
    """Let each write of the scenario fail in turn, or each `every`-th. Yield the outcomes."""
    forked.warm()
    made, again, full = scratch / "made", scratch / "again", Full(scenario.name)
    whole = scenario.undamaged_outcome(made, again)
    for number in count(0, every):
        shutil.rmtree(again)
        shutil.copytree(made, again)
        said = scenario.resume(again, partial(fill_from, number, again))
        if not (hit := (again / MARK).read_text()):
            break
        full.writes += 1
        _judge(scenario, again, hit.replace(f"{again}/", ""), said, whole, full)
    shutil.rmtree(again)
    yield full


def _judge(scenario: Scenario, folder: Path, hit: str, said: str, whole: Any, full: Full) -> None:
    left = [str(path.relative_to(folder)) for path in folder.rglob("*partial*")]
    if "Traceback" in said:
        full.wrong.append(f"{hit}: {said[-600:]}")
    elif scenario.outcome(folder) == whole:
        full.passed_over += 1
    elif SAID not in said:
        full.wrong.append(f"{hit}: not a word of it: {said[-300:]}")
    else:
        full.said += 1
    if left:
        full.wrong.append(f"{hit}: {left} are left")
    again = scenario.resume(folder, forked.as_it_is)
    if scenario.outcome(folder) != whole:
        full.wrong.append(f"{hit}: with room again, it does not go on: {again[-600:]}")
