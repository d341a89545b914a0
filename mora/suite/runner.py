"""Start the missing runs, several at a time, and go on after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from mora.config import ConfigError, RunConfig, run_id
from mora.config.run_id import spectrum_path
from mora.config.source import ROOT
from mora.io import IN_USE

from . import preflight
from .cell_specs import CellSpec
from .cells import ResolvedCell, in_order, resolve
from .gpus import GpuSlots, visible
from .launch import STOPPED, interrupt_on_sigterm, launch, run_folder, stop_workers, unheld, warning
from .progress import SuiteProgress
from .usable import done, is_current, result_of

NODES_WAIT_S = 120.0
POLL_S = 5.0  # the time between two looks at a run that another suite is doing


def missing(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Return the runs without a result that counts, each once."""
    return list({run_id(c): c for c in configs if not done(c)}.values())


def startable(specs: list[CellSpec], explained: set[str] | None = None) -> list[RunConfig]:
    """Return the missing runs that can start now, in the order in which they are started.

    If the source was changed, the results that it made take part in the choices, too: they decide what it runs, but enter
    no table. With `explained`, a set of run ids, the reason why a run was added to a search is printed once.
    """
    cells = [resolve(spec, is_current) for spec in specs]
    if explained is not None:
        for cell in cells:
            _say_why(cell, explained)
    return missing(run.config for run in in_order(cells))


def _say_why(cell: ResolvedCell, explained: set[str]) -> None:
    for config in (c for c in cell.choice.missing if run_id(c) not in explained):
        explained.add(run_id(config))
        print(f"{cell.spec.column.task} {cell.spec.label}: {cell.choice.reason(config)}", flush=True)


def complete(specs: list[CellSpec], jobs: int, patient: bool = True) -> list[str]:
    """Run everything that is missing and return the ids of the runs that failed.

    Whenever a run ends, the runs that can start are determined anew, so that the final runs of a cell do not wait for the
    searches of other cells. A run that another process is doing is left to it. For runs on several nodes, every node calls
    this function, and all do the runs in the same order.

    Args:
        specs: The cells.
        jobs: How many runs to do at a time.
        patient: Wait for runs that other processes are doing; otherwise return once nothing else is left to do.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the workers have saved their checkpoints.
    """
    interrupt_on_sigterm()
    first = startable(specs)
    for config in {c.hardware: c for c in first}.values():
        preflight.check(config)
    if first and (text := warning(specs[0].scale)):
        print(f"warning: {text}", file=sys.stderr, flush=True)
    gpus, several = visible(), max((c.hardware.processes for c in first), default=1)
    nodes = max((c.hardware.nodes for c in first), default=1)
    slots = GpuSlots(1 if nodes > 1 else jobs, gpus, several)  # so that all nodes do the runs in the same order
    jobs, pool, progress = slots.jobs, ThreadPoolExecutor(slots.jobs), SuiteProgress(len(first))
    running: dict[Future[int], RunConfig] = {}
    failed: list[str] = []
    finished: set[str] = set()  # not started again, even if a suite with other source replaces their results
    announced: list[str] = []
    explained: set[str] = set()
    try:
        while todo := [c for c in startable(specs, explained) if run_id(c) not in {*failed, *finished}]:
            progress.more(len(todo))
            ours = {run_id(c) for c in running.values()}
            others = [c for c in todo if run_id(c) not in ours]
            free = [c for c in others if not held(c) and not done(c)]  # another process may just have finished it
            if not ours:
                announced = _announce(free, others, jobs, gpus, announced)
            for config in free[: jobs - len(running)]:
                progress.begin(config)
                running[pool.submit(_run, config, slots)] = config
            if not running and not patient:
                break
            if not running:
                time.sleep(POLL_S)
                continue
            for config, code in _ended(running, jobs, progress):
                if code:
                    failed.append(run_id(config))
                elif done(config):
                    finished.add(run_id(config))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_workers()
        print("stopping: every run saves a checkpoint and ends", file=sys.stderr, flush=True)
        raise
    finally:
        pool.shutdown()
    return failed


def _ended(running: dict[Future[int], RunConfig], jobs: int, progress: SuiteProgress) -> list[tuple[RunConfig, int]]:
    """Wait for a run to end, but no longer than POLL_S if a slot is free, and remove those that ended from `running`.

    Returns:
        The runs that ended, each with its exit code.
    """
    while not (over := wait(running, POLL_S, FIRST_COMPLETED).done) and len(running) == jobs:
        progress.say(running.values())
    ended = [(running.pop(future), future.result()) for future in over]
    for config, _ in ended:
        progress.end(config, done(config))
        print(f"  {progress.whole()}", flush=True)
    return ended


def _announce(
    free: list[RunConfig], others: list[RunConfig], jobs: int, gpus: list[str], announced: list[str]
) -> list[str]:
    """Announce how many runs can start, or once which runs are waited for; return the ids of the latter."""
    if free:
        on = f" on {len(gpus)} GPUs" if len(gpus) > 1 else ""
        print(f"{len(free)} runs can start, {jobs} in parallel{on}", flush=True)
        return []
    waiting = [run_id(c) for c in others]
    if waiting != announced:
        print(f"waiting for {len(others)} runs of another process: {', '.join(waiting)}", flush=True)
    return waiting


def held(config: RunConfig) -> bool:
    """Return whether a worker, of this suite or another, is doing the run now.

    For a run on several nodes the answer is always False, since each node has to join it.
    """
    folder = run_folder(config)
    if config.hardware.nodes > 1 or not (folder / ".lock").is_file():
        return False
    with unheld(folder) as free:
        return not free


def _was_held(folder: Path) -> bool:
    """Return whether the worker ended because another process held the run. A call of `held` does so for an instant."""
    *_, last = ["", *(folder / "output.txt").read_text(errors="replace").splitlines()]
    return IN_USE in last


def _run(config: RunConfig, slots: GpuSlots) -> int:
    """Run one worker and return its exit code.

    The code is also 0 if another process is doing the run or has finished it, and 1 if the run is refused, such as where
    the disk has no room for it, or its result does not count. Then the other runs go on.
    """
    if held(config):
        print(f"{run_id(config)}: skipped (another process is running it or has finished it)", flush=True)
        return 0
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // slots.jobs))
    with open(folder / "output.txt", "a") as output, slots.take(config.hardware.world_size) as env:
        try:
            code = launch(config, output, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), **env})
        except ConfigError as error:
            print(f"{run_id(config)}: refused: {error}", file=sys.stderr, flush=True)
            return 1
    if code == 0 and config.hardware.nodes > 1:
        _wait_for_result(config)
    if code and (done(config) or held(config) or _was_held(folder)):
        print(f"{run_id(config)}: skipped (another process is running it or has finished it)", flush=True)
        return 0
    if code == 0 and result_of(config) is not None and not done(config):
        print(
            f"{run_id(config)}: the source has changed since the suite started: start the suite again",
            file=sys.stderr,
            flush=True,
        )
        return 1
    failed = f"FAILED with exit code {code}, see {folder / 'output.txt'}"
    word = {0: getattr(result_of(config), "status", "done"), STOPPED: "stopped"}.get(code, failed)
    print(f"{run_id(config)}: {word}", file=sys.stdout if code == 0 else sys.stderr, flush=True)
    return code


def _wait_for_result(config: RunConfig) -> None:
    """Wait for the result, which the first node writes: the others end a little earlier, and need it for the next plan."""
    until = time.monotonic() + NODES_WAIT_S
    while result_of(config) is None and time.monotonic() < until:
        time.sleep(1.0)


def measure_spectra(specs: list[CellSpec]) -> None:
    """Measure the spectra of finished runs whose folders are still here. Existing spectra stay."""
    for config in (c for spec in specs for c in resolve(spec, is_current).final_runs):
        path, folder = spectrum_path(config), run_folder(config)
        result = result_of(config)
        if path.is_file() or result is None or result.status != "done" or not (folder / "config.yaml").is_file():
            continue
        command = [sys.executable, "-m", "mora.analysis.spectrum", "--run", str(folder), "--out", str(path)]
        print(f"{run_id(config)}: spectrum", flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
