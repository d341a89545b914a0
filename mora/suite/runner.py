"""Runs what is missing, several side by side, and goes on after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from mora.config import RunConfig, run_id
from mora.config.run_id import spectrum_path
from mora.io import IN_USE

from . import preflight
from .cells import CellRuns, in_order, resolve
from .experiment import CellSpec
from .gpus import GpuSlots, visible
from .launch import ROOT, STOPPED, interrupt_on_sigterm, launch, run_folder, stop_workers, unheld, warning
from .progress import SuiteProgress
from .usable import done, is_current, result_of

NODES_WAIT_S = 120.0
POLL_S = 5.0  # how often a run that another suite is doing is looked at


def missing(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Return the runs without a result that counts, each once."""
    return list({run_id(c): c for c in configs if not done(c)}.values())


def plan(specs: list[CellSpec], explained: set[str] | None = None) -> list[RunConfig]:
    """Return what can be run now, in the order in which it is started.

    On changed source its own results choose, too: they decide what it runs, but enter no table. With `explained`, a set of
    run ids, the reason why a run was added to a search is printed once.
    """
    cells = [resolve(spec, is_current) for spec in specs]
    if explained is not None:
        for cell in cells:
            _say_why(cell, explained)
    return missing(run.config for run in in_order(cells))


def _say_why(cell: CellRuns, explained: set[str]) -> None:
    for config in (c for c in cell.choice.missing if run_id(c) not in explained):
        explained.add(run_id(config))
        print(f"{cell.spec.column.task} {cell.spec.label}: {cell.choice.reason(config)}", flush=True)


def complete(specs: list[CellSpec], jobs: int, patient: bool = True) -> list[str]:
    """Run everything that is missing and return the ids of the runs that failed.

    What can be run is asked anew whenever a run ends, so that the final runs of a cell do not wait for the searches of
    others. A run that another process holds is left to it. On several nodes each calls this: they do the runs in one
    order.

    Args:
        specs: The cells.
        jobs: How many runs at a time.
        patient: Look at held runs again while a slot is free; otherwise stop once nothing else is left to do.

    Raises:
        KeyboardInterrupt: SIGTERM or Ctrl-C came; the workers have saved their checkpoints.
    """
    interrupt_on_sigterm()
    first = plan(specs)
    for config in {c.hardware: c for c in first}.values():
        preflight.check(config)
    if first and (text := warning(specs[0].scale)):
        print(f"warning: {text}", file=sys.stderr, flush=True)
    gpus, several = visible(), max((c.hardware.processes for c in first), default=1)
    nodes = max((c.hardware.nodes for c in first), default=1)
    slots = GpuSlots(1 if nodes > 1 else jobs, gpus, several)  # the nodes of a run do the runs in one order
    jobs, pool, progress = slots.jobs, ThreadPoolExecutor(slots.jobs), SuiteProgress(len(first))
    running: dict[Future[int], RunConfig] = {}
    failed: list[str] = []
    finished: set[str] = set()  # not begun again, though a suite of other source may replace their results
    announced: list[str] = []
    explained: set[str] = set()
    try:
        while todo := [c for c in plan(specs, explained) if run_id(c) not in {*failed, *finished}]:
            progress.more(len(todo))
            ours = {run_id(c) for c in running.values()}
            others = [c for c in todo if run_id(c) not in ours]
            free = [c for c in others if not held(c) and not done(c)]  # the other process may just have ended it
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
    """Wait for a run to end, no longer than POLL_S if a slot is free; take those that ended out of `running`.

    Returns each with its exit code.
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
    """Announce once what is started, or what is waited for; return the ids of the latter."""
    if free:
        on = f" on {len(gpus)} GPUs" if len(gpus) > 1 else ""
        print(f"{len(free)} runs can start, {jobs} in parallel{on}", flush=True)
        return []
    waiting = [run_id(c) for c in others]
    if waiting != announced:
        print(f"waiting for {len(others)} runs of another process: {', '.join(waiting)}", flush=True)
    return waiting


def held(config: RunConfig) -> bool:
    """Return whether a worker, of this suite or another, is at the run now; never for several nodes, as others join."""
    folder = run_folder(config)
    if config.hardware.nodes > 1 or not (folder / ".lock").is_file():
        return False
    with unheld(folder) as free:
        return not free


def _was_held(folder: Path) -> bool:
    """Return whether the worker ended because another process had the run then; `held` itself holds it for an instant."""
    *_, last = ["", *(folder / "output.txt").read_text(errors="replace").splitlines()]
    return IN_USE in last


def _run(config: RunConfig, slots: GpuSlots) -> int:
    """Run one worker and return its exit code.

    It is 0, too, if another process holds the run or was faster, and 1 if its result does not count.
    """
    if held(config):
        print(f"{run_id(config)}: skipped (another process is running it or has finished it)", flush=True)
        return 0
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // slots.jobs))
    with open(folder / "output.txt", "a") as output, slots.take(config.hardware.world_size) as env:
        code = launch(config, output, {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), **env})
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
    """Wait for the result that the first node writes: the others end a little earlier, and all plan the next run with it."""
    until = time.monotonic() + NODES_WAIT_S
    while result_of(config) is None and time.monotonic() < until:
        time.sleep(1.0)


def measure_spectra(specs: list[CellSpec]) -> None:
    """Measure the spectra of finished runs whose weights are still in their folders; existing ones stay."""
    for config in (c for spec in specs for c in resolve(spec, is_current).final_runs):
        path, folder = spectrum_path(config), run_folder(config)
        result = result_of(config)
        if path.is_file() or result is None or result.status != "done" or not (folder / "config.yaml").is_file():
            continue
        command = [sys.executable, "-m", "mora.analysis.spectrum", "--run", str(folder), "--out", str(path)]
        print(f"{run_id(config)}: spectrum", flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
