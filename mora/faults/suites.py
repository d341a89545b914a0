"""Suites with two runs side by side, killed at random times: the suite alone, one of its workers, or all of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mora.config.source import ROOT
from mora.train import log

from .curves import Row, compare
from .kills import Attempts, Save

NAME = "suite, JOBS=2"
KILLS_A_SUITE = 5
LIMIT_S = 900.0  # of one start
SETTINGS = (
    "task.train.stop_step=20", "task.train.checkpoint_every_steps=3", "task.train.log_every_steps=1",
    "task.evaluation.tasks=[]", "task.evaluation.at_steps=[]", "task.evaluation.loss_every_steps=10",
)  # fmt: skip
RUNS = 4
WHOM = ("suite", "worker", "all")


def kill_suites(kills: int, seed: int, scratch: Path, attempts: Attempts, save: Save) -> None:
    """Kill suites of the four runs of table_restarts until there are `kills` kills.

    A suite whose workers live on is started again at once: it waits for the runs that they hold, and they end by themselves.
    `attempts` and `keep` are those of `kills.kill_runs`.
    """
    if len(attempts.kills) >= kills:
        return
    try:
        _kill_suites(attempts, kills, seed, scratch, save)
    finally:
        for pid in living(scratch, "mora.suite", "mora.train"):
            os.kill(pid, signal.SIGKILL)


def _kill_suites(attempts: Attempts, kills: int, seed: int, scratch: Path, save: Save) -> None:
    whole, whole_s = _uninterrupted(scratch / "whole")
    while len(attempts.kills) < kills:
        attempts.runs += 1
        folder = scratch / f"suite-{attempts.runs}"
        for number in range(min(KILLS_A_SUITE, kills - len(attempts.kills))):
            draw = attempts.draw(seed)
            started = time.monotonic()
            if not _killed(folder, draw.uniform(0.1, 0.7) * whole_s, draw, attempts):
                if number == 0:  # from its beginning to its end: the machine was busier before
                    whole_s = min(whole_s, time.monotonic() - started)
                break
            for name, rows in _logs(folder):
                compared = compare(rows, whole[name], ended=False)
                attempts.judge(compared, 0.0, f"suite {attempts.runs}, kill {len(attempts.kills)}, {name}")
        _end(folder, whole, attempts)
        shutil.rmtree(folder)
        save(attempts)


def _uninterrupted(folder: Path) -> tuple[dict[str, list[Row]], float]:
    """Return the rows of every run by its id, and the seconds. Raises RuntimeError if the suite fails."""
    started = time.monotonic()
    code = _start(folder).wait(LIMIT_S)
    if code:
        raise RuntimeError(f"{NAME}: the uninterrupted suite failed: {_output(folder)[-1500:]}")
    return dict(_logs(folder)), time.monotonic() - started


def options(folder: Path) -> list[str]:
    """Return the suite's command line. No column of its table shows a step that runs so short do not come to."""
    words = ["table_restarts", "--scale", "smoke", "--jobs", "2", "--results", str(folder / "own")]
    return [*words, "--set", *SETTINGS]


def _start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    own = {"MORA_OUTPUT_DIR": str(folder / "outputs"), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with open(folder / "output.txt", "ab") as output:
        command = [sys.executable, "-m", "mora.suite", *options(folder)]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT)


def _killed(folder: Path, after_s: float, draw: random.Random, attempts: Attempts) -> bool:
    """Start the suite and kill it; return False if it had ended before, or had no worker to kill."""
    suite, whom = _start(folder), draw.choice(WHOM)
    with suppress(subprocess.TimeoutExpired):
        suite.wait(after_s)
        if suite.returncode:
            attempts.wrong.append(f"suite {attempts.runs} failed: {_output(folder)[-600:]}")
        return False
    workers = living(folder)
    if whom == "worker" and not workers:
        whom = "suite"
    chosen = {"suite": [suite.pid], "worker": workers and [draw.choice(workers)], "all": [suite.pid, *workers]}[whom]
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if (
        whom == "worker"
        and suite.wait(LIMIT_S) == 0
        and len(list((folder / "own" / "runs").glob("*[0-9a-f].json"))) < RUNS
    ):
        attempts.wrong.append(f"suite {attempts.runs}: a worker was killed, and its suite did not say so")
    suite.wait(LIMIT_S)
    attempts.kills.append({"run": attempts.runs, "after_s": round(after_s, 3), "killed": whom})
    return True


def _end(folder: Path, whole: dict[str, list[Row]], attempts: Attempts) -> None:
    """Run the suite to the end, start it once more, and judge what is there then."""
    where = f"suite {attempts.runs}"
    if code := _start(folder).wait(LIMIT_S):
        attempts.wrong.append(f"{where}: exit code {code}: {_output(folder)[-600:]}")
        return
    written = {path: path.stat().st_mtime_ns for path in (folder / "own" / "runs").glob("*.json")}
    _start(folder).wait(LIMIT_S)
    results = {path: path.stat().st_mtime_ns for path in (folder / "own" / "runs").glob("*.json")}
    if results != written:
        attempts.wrong.append(f"{where}: results were written twice")
    names = sorted(json.loads(path.read_text())["run_id"] for path in results)
    attempts.results += len(names)
    if names != sorted(whole):
        attempts.wrong.append(f"{where}: results of {names}, expected one of each of {sorted(whole)}")
    for name, rows in _logs(folder):
        attempts.judge(compare(rows, whole[name], ended=True), 0.0, f"{where}, {name}")
    if left := living(folder):
        attempts.wrong.append(f"{where}: processes {left} were left behind")


def _logs(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    for path in sorted((folder / "outputs").glob("*/log.jsonl")):
        yield path.parent.name, log.read(path)


def _output(folder: Path) -> str:
    return (folder / "output.txt").read_text(errors="replace")


def living(folder: Path, *modules: str) -> list[int]:
    """Return the processes of these modules, by default of the trainer, that work in the folder."""
    wanted = {*(modules or ("mora.train",))}
    pids: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words: list[Any] = path.read_bytes().decode(errors="replace").split("\0")
            if wanted & {*words} and any(word.startswith(f"{folder}/") for word in words):
                pids.append(int(path.parent.name))
    return sorted(pids)
