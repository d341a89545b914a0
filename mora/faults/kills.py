"""SIGKILL at random times: a run is killed and resumed until it ends; then the next begins."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mora.config import RunConfig, compose, run_id
from mora.config.run_id import log_path, result_path
from mora.suite.launch import write_config
from mora.train import log

from . import forked
from .curves import Compared, Row, compare

LIMIT_S = 300.0  # the most that one start may take
KILLS_A_RUN = 5
WHOM = ("all ranks", "one rank")
ALONE_S = 60.0  # how long a rank may live on after another was killed
STEPS = 36
SMALL = (
    "model.architecture.hidden_size=32", "model.architecture.intermediate_size=48",
    "model.architecture.num_hidden_layers=1",
)  # fmt: skip
UUID = (
    "task=uuid", *SMALL, "task.data.pairs=8", "task.train.global_batch_size=8", f"task.train.epochs={STEPS}",
    "task.evaluation.at_steps=[18]", "task.evaluation.loss_every_steps=10",
)  # fmt: skip
SUMS = ("task=metamath", "task.train.epochs=4", "task.evaluation.loss_every_steps=4")  # prepared data, two tasks
OFTEN = (
    "scale=smoke",
    "task.train.warmup_steps=2",
    "task.train.checkpoint_every_steps=3",
    "task.train.log_every_steps=1",
)
RESTARTS = ("method.restart.every_steps=7", "method.restart.warmup_steps=1")
METHODS = ("fft", "lora", "lora_plus", "asylora", "dora", "mora", "relora", "remora")


class Case(NamedTuple):
    """A run to kill. Its losses and metrics may differ from those of the uninterrupted run by `tolerance`."""

    name: str
    overrides: tuple[str, ...]
    ranks: int = 1
    tolerance: float = 0.0

    def config(self, folder: Path) -> RunConfig:
        quoted = str(folder / "results").replace("\\", "\\\\").replace("'", "\\'")
        return compose([*self.overrides, f"scale.results_dir='{quoted}'"])


def cases() -> list[Case]:
    """Return every method in one process, one method on prepared data, and ReMoRA on two ranks."""
    runs = [Case(name, _of_method(name, UUID)) for name in METHODS]
    runs.append(Case("mora, prepared data", _of_method("mora", (*SUMS, *SMALL))))
    two = ("hardware=cpu2", "method.adapter.dropout=0")
    for parallel in ("zero2", "zero3"):
        settings = (*_of_method("remora", UUID), *two, f"hardware.parallel={parallel}")
        runs.append(Case(f"remora, {parallel}, two ranks", settings, ranks=2, tolerance=1e-5))
    return runs


def _of_method(name: str, task: tuple[str, ...]) -> tuple[str, ...]:
    rank = () if name == "fft" else ("r=4",)
    return (*task, *OFTEN, f"method={name}", *rank, *(RESTARTS if name.startswith("re") else ()))


@dataclass
class Attempts:
    """The kills of a case, and their outcomes.

    `draws` counts the kills that were planned, also those whose time came after the run's end. `wrong` describes what is not
    as it should be.
    """

    case: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    draws: int = 0
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    results: int = 0
    difference: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def draw(self, seed: int) -> random.Random:
        """Return the random numbers that decide the next kill."""
        self.draws += 1
        return random.Random(f"{seed}:{self.case}:{self.draws - 1}")

    def judge(self, compared: Compared, tolerance: float, where: str) -> None:
        self.lost += compared.lost
        self.doubled += compared.doubled
        self.difference = max(self.difference, compared.difference)
        if not compared.equal(tolerance):
            self.wrong.append(f"{where}: {compared}")


Save = Callable[[Attempts], None]


def _nowhere(_: Attempts) -> None:
    """Save nothing for a later start."""


@dataclass(frozen=True)
class Uninterrupted:
    """The uninterrupted run, which took `seconds` from its start to its end."""

    rows: list[Row]
    metrics: dict[str, Any]
    seconds: float


def kill_runs(case: Case, kills: int, seed: int, scratch: Path, attempts: Attempts, save: Save = _nowhere) -> None:
    """Kill runs of the case until there were `kills`, at times that follow from `seed`, the case and the kill's number.

    They are added to `attempts`, which may hold earlier ones. After every run that has ended `save` is called with it.
    """
    if len(attempts.kills) >= kills:
        return
    forked.warm()
    whole = uninterrupted(case, scratch / "whole")
    lasts_s = whole.seconds
    while len(attempts.kills) < kills:
        attempts.runs += 1
        folder = scratch / f"run-{attempts.runs}"
        config = case.config(folder)
        for number in range(min(KILLS_A_RUN, kills - len(attempts.kills))):
            draw = attempts.draw(seed)
            after_s, how = draw.uniform(0.1, 1.0) * lasts_s, draw.choice(WHOM) if case.ranks > 1 else "process"
            started = time.monotonic()
            if not _killed(case, folder, config, after_s, how, attempts):
                if number == 0:  # from its beginning to its end: the machine was busier before
                    lasts_s = min(lasts_s, time.monotonic() - started)
                break
            rows = log.read(run_folder(folder, config) / "log.jsonl")
            compared = compare(rows, whole.rows, ended=False)
            attempts.judge(compared, case.tolerance, f"run {attempts.runs}, kill {len(attempts.kills)}")
            attempts.kills[-1]["steps"] = compared.steps
        _end(case, folder, config, whole, attempts)
        shutil.rmtree(folder)
        save(attempts)


def uninterrupted(case: Case, folder: Path) -> Uninterrupted:
    """Run the case without a kill. Raises RuntimeError if it fails."""
    config, started = case.config(folder), time.monotonic()
    output = to_its_end(case, folder, config)
    seconds = time.monotonic() - started
    if not result_path(config).is_file():
        raise RuntimeError(f"{case.name}: the uninterrupted run failed: {output[-1500:]}")
    return Uninterrupted(log.read(log_path(config)), json.loads(result_path(config).read_text())["metrics"], seconds)


def run_folder(folder: Path, config: RunConfig) -> Path:
    return folder / "outputs" / run_id(config)


def start(
    case: Case, folder: Path, config: RunConfig, prepare: forked.Prepare = forked.as_it_is, **env: str
) -> list[forked.ForkServerProcess]:
    """Start the run's workers, with a cache of their own."""
    own = run_folder(folder, config)
    own.mkdir(parents=True, exist_ok=True)
    write_config(config, own / "config.yaml")
    return forked.start(own, {"MORA_CACHE_DIR": str(folder / "cache"), **env}, case.ranks, prepare)


def to_its_end(
    case: Case, folder: Path, config: RunConfig, prepare: forked.Prepare = forked.as_it_is, **env: str
) -> str:
    """Run to the end; return what the run has printed."""
    for worker in start(case, folder, config, prepare, **env):
        worker.join(LIMIT_S)
        if worker.exitcode is None:
            worker.kill()
            worker.join()
    return (run_folder(folder, config) / "output.txt").read_text()


def _killed(case: Case, folder: Path, config: RunConfig, after_s: float, how: str, attempts: Attempts) -> bool:
    """Start the run and kill it; return False if it had ended before, True once no process of it is left."""
    if result_path(config).is_file():
        return False
    before = _log_written(folder, config)
    workers = start(case, folder, config)
    workers[0].join(after_s)
    if workers[0].exitcode is not None:
        for worker in workers:
            worker.join(LIMIT_S)
        if any(worker.exitcode for worker in workers):
            attempts.wrong.append(f"run {attempts.runs} failed: {_last_words(folder, config)}")
        return False
    chosen = workers if how != "one rank" else workers[-1:]
    for worker in chosen:
        worker.kill()
    have_trained = _log_written(folder, config) != before
    for worker in workers:
        worker.join(ALONE_S if have_trained else 0.0)
        if worker.exitcode is None:
            if have_trained:
                attempts.wrong.append(
                    f"run {attempts.runs}: a rank lived on for {ALONE_S:.0f} s after another was killed"
                )
            worker.kill()
            worker.join()
    if not any(worker.exitcode == -signal.SIGKILL for worker in chosen):
        return False
    attempts.kills.append({"run": attempts.runs, "after_s": round(after_s, 3), "killed": how})
    return True


def _log_written(folder: Path, config: RunConfig) -> int | None:
    """Return when the run's log was last written, None if there is none. It tells whether the ranks have logged a step.

    Until then a rank may wait for hours for another to join one of their groups. The launcher would end it, but there is
    none here. Afterwards the broken connection ends it.
    """
    path = run_folder(folder, config) / "log.jsonl"
    return path.stat().st_mtime_ns if path.is_file() else None


def _end(case: Case, folder: Path, config: RunConfig, whole: Uninterrupted, attempts: Attempts) -> None:
    """Run to the end, start the run once more, and judge what is there then."""
    output = to_its_end(case, folder, config)
    where = f"run {attempts.runs}"
    if not result_path(config).is_file():
        attempts.wrong.append(f"{where} did not end: {output[-600:]}")
        return
    written = result_path(config).stat().st_mtime_ns
    to_its_end(case, folder, config)
    if result_path(config).stat().st_mtime_ns != written:
        attempts.wrong.append(f"{where}: its result was written twice")
    attempts.judge(compare(log.read(log_path(config)), whole.rows, ended=True), case.tolerance, where)
    results = [path.name for path in (folder / "results").glob("*.json")]
    attempts.results += len(results)
    if len(results) != 1:
        attempts.wrong.append(f"{where}: {len(results)} results")
    if case.tolerance == 0 and json.loads(result_path(config).read_text())["metrics"] != whole.metrics:
        attempts.wrong.append(f"{where}: other metrics than the uninterrupted run's")


def _last_words(folder: Path, config: RunConfig) -> str:
    return (run_folder(folder, config) / "output.txt").read_text()[-600:]
