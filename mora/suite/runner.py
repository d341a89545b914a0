"""Runs what is missing, several side by side, and goes on after a failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mora.config import RunConfig, run_id

from .experiment import Grid
from .launch import interrupt_on_sigterm, launch, result_of, run_folder, stop_workers


def missing(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Those without a result, each once."""
    return list({run_id(c): c for c in configs if result_of(c) is None}.values())


def plan(grids: list[Grid]) -> list[RunConfig]:
    """What can be run now: searches that are not complete, else the runs at the chosen rate."""
    return missing(c for grid in grids for c in (grid.search() + grid.final()))


def complete(grids: list[Grid], jobs: int) -> list[str]:
    """Runs everything that is missing: first the searches, then the final runs. Returns the ids of the runs that failed.

    Raises: KeyboardInterrupt on SIGTERM or Ctrl-C, after the workers have saved their checkpoints.
    """
    failed: dict[str, int] = {}
    interrupt_on_sigterm()
    while todo := [c for c in plan(grids) if run_id(c) not in failed]:
        print(f"{len(todo)} runs, {jobs} side by side", flush=True)
        pool = ThreadPoolExecutor(jobs)
        try:
            for config, code in zip(todo, pool.map(lambda c: _run(c, jobs), todo), strict=True):
                if code:
                    failed[run_id(config)] = code
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_workers()
            print("stopping: every run saves a checkpoint and ends", file=sys.stderr, flush=True)
            raise
        finally:
            pool.shutdown()
    return list(failed)


def _run(config: RunConfig, jobs: int) -> int:
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    with open(folder / "output.txt", "a") as output:
        env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "MORA_SIDE_BY_SIDE": str(jobs)}
        code = launch(config, output, env)
    word = "done" if code == 0 else f"FAILED with exit code {code}, see {folder / 'output.txt'}"
    print(f"{run_id(config)}: {word}", file=sys.stdout if code == 0 else sys.stderr, flush=True)
    return code
