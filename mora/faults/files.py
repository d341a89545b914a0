"""Every file of a cut run and of its cache, damaged in turn: named in a line, or made again; never another result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mora.config.run_id import log_path, result_path
from mora.train import log

from . import forked
from .curves import compare
from .kills import SUMS, Case, Whole, run_folder, start, to_its_end, uninterrupted

CUT_AT = "in_evaluation:12"  # two checkpoints lie there, and the evaluation of the last is not written yet
SETTINGS = (
    *SUMS, "scale=smoke", "method=mora", "r=4", "task.train.warmup_steps=2", "task.train.checkpoint_every_steps=6",
    "task.evaluation.at_steps=[6,12]", "task.evaluation.loss_every_steps=6", "task.train.stop_step=14",
    "task.evaluation.tasks=[metamath_gsm8k_gold,metamath_math_gold]",  # nothing is generated: seconds a start
)  # fmt: skip
CASE = Case("a cut run", SETTINGS)
OTHER = Case("another run", (*SETTINGS, "seed=1"))
NOT_READ = ("output.txt", ".lock", "*/evaluation_data/*")  # the last: written anew by every start


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    """A bit of the middle byte, and one of a digit: what changes a number and breaks no syntax."""
    changed = bytearray(data)
    digits = [match.start() for match in re.finditer(rb"(?<=[:, ])\d", data)]
    for at in {len(data) // 2, *(digits[len(digits) // 2 :][:1])}:
        changed[at] ^= 1
    return bytes(changed)


def _nan(data: bytes) -> bytes | None:
    """None of what is no text, or has no number."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    changed = re.sub(r"(?<=[:, ])-?\d+(\.\d+)?(e-?\d+)?(?=[,}\s])", "NaN", text, count=1)
    return None if changed == text else changed.encode()


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": _half,
    "flipped": _flipped,
    "empty": lambda data: b"",
    "NaN inside": _nan,
}
IN_ITS_PLACE = ("a folder", "another run's")


@dataclass
class Damaged:
    """What came of the damages to one file: how often the work went on to the uninterrupted run's result, or was refused."""

    file: str
    damages: int = 0
    healed: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def damage_files(scratch: Path, wanted: Callable[[str], bool], hows: tuple[str, ...] = ()) -> Iterator[Damaged]:
    """Each file of a cut run, damaged in each of the ways, and the run then gone on with."""
    forked.warm()
    whole, cut, other = uninterrupted(CASE, scratch / "whole"), scratch / "cut", scratch / "other"
    _cut(CASE, cut)
    if not hows or IN_ITS_PLACE[1] in hows:
        _cut(OTHER, other)
    for file in sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file()):
        if any(file.match(pattern) for pattern in NOT_READ) or not wanted(str(file)):
            continue
        damaged = Damaged(_short(file))
        for how in hows or (*DAMAGES, *IN_ITS_PLACE):
            again = scratch / "again"
            shutil.copytree(cut, again)
            if _damage(again / file, how, other):
                damaged.damages += 1
                _go_on(again, file, how, whole, damaged)
            shutil.rmtree(again)
        yield damaged


def _cut(case: Case, folder: Path) -> None:
    config = case.config(folder)
    (worker,) = start(case, folder, config, MORA_KILL_AT=CUT_AT)
    worker.join()
    if worker.exitcode != -9:
        raise RuntimeError(f"{case.name} was not cut: {(run_folder(folder, config) / 'output.txt').read_text()[-800:]}")


def _short(file: Path) -> str:
    """Without what differs from run to run."""
    return re.sub(r"-[0-9a-f]{10,16}(?=/)", "", re.sub(r"uuid-\S+?/|metamath-\S+?-s0-\w+/", "RUN/", str(file)))


def _damage(path: Path, how: str, other: Path) -> bool:
    """False where that cannot be done to the file."""
    if how == "a folder":
        path.unlink()
        path.mkdir()
        return True
    if how == "another run's":
        theirs = next((p for p in sorted(other.rglob(path.name)) if p.parent.name == path.parent.name), None)
        theirs = theirs or next(iter(sorted(other.rglob(path.name))), None)
        data = theirs.read_bytes() if theirs is not None else None
    else:
        data = DAMAGES[how](path.read_bytes())
    if data is None or data == path.read_bytes():
        return False
    path.write_bytes(data)
    return True


def _go_on(folder: Path, file: Path, how: str, whole: Whole, damaged: Damaged) -> None:
    config = CASE.config(folder)
    said_before = len((run_folder(folder, config) / "output.txt").read_text())
    output = to_its_end(CASE, folder, config)[said_before:]
    if "Traceback" in output:
        damaged.wrong.append(f"{how}: {output[-600:]}")
    elif not result_path(config).is_file():
        damaged.refused += 1
        if file.name not in output and str(file.parent.name) not in output:
            damaged.wrong.append(f"{how}: the file is not named: {output[-300:]}")
    elif (
        not compare(log.read(log_path(config)), whole.rows, ended=True).equal(0.0) or _metrics(config) != whole.metrics
    ):
        damaged.wrong.append(f"{how}: another result than the uninterrupted run's, and not a word: {output[-300:]}")
    else:
        damaged.healed += 1


def _metrics(config: Any) -> Any:
    return json.loads(result_path(config).read_text())["metrics"]
