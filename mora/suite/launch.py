"""The folder of a run, and the worker process that does the run there. Imports no torch."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import yaml

from mora import digests
from mora.config import ConfigError, RunConfig, run_id, source
from mora.config.run_id import documents_path, log_path, result_path, spectrum_path
from mora.config.source import ROOT
from mora.errors import short
from mora.io import locked, output_dir, replace_file

from . import micro_batch, preflight
from .usable import done, is_current, result_of


def run_folder(config: RunConfig) -> Path:
    """Return the run's working folder: outputs/<run_id>, or MORA_OUTPUT_DIR/<run_id> if that variable is set."""
    return output_dir() / run_id(config)


STOPPED = 130  # the exit code of a run that was asked to stop, like that of a shell's command after Ctrl-C

_workers: dict[subprocess.Popen[bytes], bool] = {}  # by running worker, whether it was asked to stop


def interrupt_on_sigterm() -> None:
    """Treat SIGTERM and a closed terminal as Ctrl-C from now on, so that workers save a checkpoint before they stop."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it, and that stays so
        signal.signal(signal.SIGHUP, interrupt)


def stop_workers(how: signal.Signals = signal.SIGTERM) -> None:
    """Ask every running worker to save a checkpoint and end."""
    for worker in list(_workers):
        _workers[worker] = True
        _send(how, _ranks(worker))


def _send(how: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def _ranks(worker: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes that train. Torchrun is not asked: it kills its ranks after 30 s, even if they have not saved."""
    torchrun = "torch.distributed.run" in worker.args  # type: ignore[operator]
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    pids = children.read_text().split() if torchrun and children.is_file() else []
    return [int(pid) for pid in pids] or [worker.pid]


def _starter(config: RunConfig) -> list[str]:
    """Return how the worker's command begins: Python; for several ranks torchrun, which ends all when one dies."""
    hardware = config.hardware
    if hardware.world_size == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.processes}"]
    if hardware.nodes == 1:
        return [*torchrun, "--standalone"]
    where = f"--rdzv-endpoint={rendezvous(config)}"
    return [*torchrun, f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id(config)}", where]


def rendezvous(config: RunConfig) -> str:
    """Return the host:port where a run's nodes meet; for "slurm", the job's first node and a port of the job's own."""
    if config.hardware.rendezvous != "slurm":
        assert config.hardware.rendezvous is not None
        return config.hardware.rendezvous
    import submitit

    job = submitit.JobEnvironment()
    return f"{job.hostnames[0]}:{20_000 + int(job.raw_job_id) % 10_000}"


def warning(scale: str) -> str | None:
    """Return a warning if results of this scale will enter no table, as the source was changed or has no commit."""
    dirty = source.of_this_process()["dirty"]
    if scale == "smoke" or dirty is False:
        return None
    if dirty is None:
        return "no git repository: results enter no table until scripts/collect_results.py has found their commit"
    return "the source is changed since the commit: results will enter no table; commit mora/ and configs/ first"


def launch(
    config: RunConfig,
    output: Any = None,
    env: dict[str, str] | None = None,
    folder: Path | None = None,
    left_s: Callable[[], float] | None = None,
) -> int:
    """Run the worker to its end and return its exit code, or STOPPED.

    A run whose result counts is not repeated. A result that does not count is set aside. If the configuration leaves the
    micro batch open, it is the largest that fits by the plan, and is halved after each out-of-memory error.

    Args:
        config: The run.
        output: A file for what the worker prints; None means this terminal.
        env: Environment variables that the worker gets beside this process's.
        folder: A folder to use instead of the run's own.
        left_s: Returns the seconds that are left. It is asked every second; at zero the worker and its ranks are killed.

    Raises:
        ConfigError: The hardware, the weights or room on the disk are not here, or the existing result was made with other
            weights or data.
        KeyboardInterrupt: The launch was interrupted while no worker was running; otherwise it returns STOPPED.
    """
    preflight.check(config)
    if done(config):
        _check_is_its_own(config)
        print(f"already done: {result_path(config)}", file=output or sys.stdout)
        return 0
    if output is None and (text := warning(config.scale.name)):
        print(f"warning: {text}", file=sys.stderr)
    folder = folder or run_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the run's folder {folder} cannot be made ({error.strerror}): set MORA_OUTPUT_DIR to a folder for outputs"
        ) from error
    _set_aside(config, folder)
    preflight.check_room(config, folder)
    if text := micro_batch.too_slow(config):
        print(f"note: {text}", file=output or sys.stderr, flush=True)
    now = micro_batch.fitted(config)
    while True:
        write_config(now, folder / "config.yaml")
        _announce(now, folder, output)
        code = _work(now, folder, output, env, left_s)
        out_of_memory = micro_batch.ran_out_of_memory(folder) and code and micro_batch.left_open(config)
        smaller = micro_batch.halved(now) if out_of_memory else None
        if smaller is None or code == STOPPED:
            return code
        print(
            f"{run_id(config)}: out of GPU memory with {now.micro_batch_size} sequences per pass; retrying with "
            f"{smaller.micro_batch_size}, from the last checkpoint (the same run but for rounding and dropout's draw)",
            file=output or sys.stderr,
            flush=True,
        )
        now = smaller


def _announce(config: RunConfig, folder: Path, output: Any) -> None:
    lr = "" if config.lr is None else f" lr={config.lr:g},"
    steps = f"{config.last_step} steps" if config.knows_steps else f"{config.task.train.epochs} epochs"
    print(f"{run_id(config)}: {steps},{lr} folder {folder}", file=output or sys.stdout, flush=True)


def _work(
    config: RunConfig, folder: Path, output: Any, env: dict[str, str] | None, left_s: Callable[[], float] | None
) -> int:
    """Run one worker to its end; return its exit code, or STOPPED."""
    command = [*_starter(config), "-m", "mora.train", str(folder)]
    try:
        worker = subprocess.Popen(
            command,
            stdout=output,
            stderr=output and subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(env or {}), "MORA_LAUNCHER": str(os.getpid())},
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which passes it on once
        )
    except (OSError, ValueError) as error:  # an argument is too long or has a NUL, such as in hardware.rendezvous
        raise ConfigError(
            f"the worker cannot be started ({error.args[-1]}): {short(shlex.join(command), 300)}"
        ) from error
    _workers[worker] = False
    try:
        code = _wait(worker, left_s)
        if not _workers[worker]:
            return code
        if code < 0:  # ended by the signal; a worker that was still loading prints nothing itself
            print(f"{run_id(config)}: stopped; start it again to resume", file=output or sys.stderr)
        return STOPPED
    finally:
        del _workers[worker]


def _check_is_its_own(config: RunConfig) -> None:
    """Raise ConfigError if the result was made with other weights or data of the same names."""
    result = result_of(config)
    if result is not None and (reason := preflight.unlike(config, result)):
        raise ConfigError(
            f"{result_path(config)} is not this run's result: {reason}, or move the result away to repeat the run"
        )


def unheld(folder: Path) -> AbstractContextManager[bool]:
    """Context manager: yield whether no worker, of this suite or another, is working on the run.

    A worker holds the lock of the run's folder as long as it lives. Within the context none can start, but other
    processes may ask the same.
    """
    return locked(folder, shared=True, wait=False)


def _set_aside(config: RunConfig, folder: Path) -> None:
    """Move a result that does not count, with its log and spectrum, to `unusable/`; its source is added to the name.

    Nothing is moved while a worker is working on the run, since it started with that result.
    """
    with unheld(folder) as free:
        result = result_of(config)
        if free and result is not None and not is_current(result, config.scale.name):
            _move(config, "unusable", result.source.fingerprint)


def repeat(config: RunConfig) -> Path | None:
    """Move the run's result, whether it counts or not, to `earlier/` beside it, so that the run is repeated.

    Returns:
        Where the result is now; None if there is none, or a worker is working on the run.
    """
    folder = run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with unheld(folder) as free:
        if not free or not result_path(config).is_file():
            return None
        there = result_path(config).parent / "earlier"
        numbers = [path.stem.rpartition(".")[2] for path in there.glob(f"{run_id(config)}.*.json")]
        return _move(config, "earlier", str(1 + max((int(n) for n in numbers if n.isdecimal()), default=0)))


def _move(config: RunConfig, where: str, mark: str) -> Path:
    """Move the result with its log and spectrum into a folder beside it."""
    path = result_path(config)
    aside = path.parent / where / f"{run_id(config)}.{mark}"
    aside.parent.mkdir(exist_ok=True)
    moved = {log_path(config): ".log.jsonl", spectrum_path(config): ".spectrum.json"}
    moved |= {documents_path(config): ".documents.jsonl.zst", path: ".json"}  # the result itself is last
    for file, kind in moved.items():
        digests.forget(file)
        with suppress(FileNotFoundError):  # another suite may have just moved it
            os.replace(file, f"{aside}{kind}")
    return Path(f"{aside}.json")


def _wait(worker: subprocess.Popen[bytes], left_s: Callable[[], float] | None) -> int:
    try:
        while left_s is not None and (left := left_s()) > 0:
            with suppress(subprocess.TimeoutExpired):
                return worker.wait(min(1.0, left))
        if left_s is not None:
            _send(signal.SIGKILL, {*_ranks(worker), worker.pid})
        return worker.wait()
    except (KeyboardInterrupt, SystemExit):  # submitit raises SystemExit after it has requeued a job
        stop_workers()
    try:
        return worker.wait()
    except (KeyboardInterrupt, SystemExit):
        stop_workers(signal.SIGKILL)
        return worker.wait()


def write_config(config: RunConfig, path: Path) -> None:
    """Write the configuration atomically, since several nodes may write it; a file with the same text is left alone."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if path.is_file() and path.read_text() == text:
        return
    replace_file(path, text)
