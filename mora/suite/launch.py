"""A run's folder, and the worker process in it. No torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from mora.config import ConfigError, RunConfig, run_id
from mora.config.run_id import result_path
from mora.config.source import ROOT


def run_folder(config: RunConfig) -> Path:
    """Where the run works: outputs/<run_id>, or MORA_OUTPUT_DIR/<run_id> for a larger disk."""
    return Path(os.environ.get("MORA_OUTPUT_DIR", ROOT / "outputs")) / run_id(config)


def result_of(config: RunConfig) -> dict[str, Any] | None:
    """The result of this very run, if it was made. Raises: ConfigError where its file is damaged."""
    path = result_path(config)
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and the run is done again") from error


STOPPED = 130  # exit code of a run that was asked to stop, as of a shell's command after Ctrl-C

_workers: dict[subprocess.Popen[bytes], bool] = {}  # whether it has been asked to stop


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM, and a closed terminal, are Ctrl-C: what is running is stopped gently, not abandoned."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, interrupt)


def stop_workers(how: signal.Signals = signal.SIGTERM) -> None:
    """Asks every worker that is running to save a checkpoint and end."""
    for worker in list(_workers):
        _workers[worker] = True
        _send(how, _ranks(worker))


def _send(how: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def _ranks(worker: subprocess.Popen[bytes]) -> list[int]:
    """The processes that train. Torchrun is passed over: once asked, it kills its ranks after 30 s, saved or not."""
    torchrun = "torch.distributed.run" in worker.args  # type: ignore[operator]
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
    found = children.read_text().split() if torchrun and children.is_file() else []
    return [int(pid) for pid in found] or [worker.pid]


def _starter(config: RunConfig) -> list[str]:
    """Python, or torchrun for several ranks: it ends them all when one dies."""
    hardware = config.hardware
    if hardware.world_size == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={hardware.processes}"]
    if hardware.nodes == 1:
        return [*torchrun, "--standalone"]
    where = f"--rdzv-endpoint={rendezvous(config)}"
    return [*torchrun, f"--nnodes={hardware.nodes}", "--rdzv-backend=c10d", f"--rdzv-id={run_id(config)}", where]


def rendezvous(config: RunConfig) -> str:
    """Where the nodes of a run meet, host:port; for "slurm" on the job's first node, at a port of the job's own."""
    if config.hardware.rendezvous != "slurm":
        assert config.hardware.rendezvous is not None
        return config.hardware.rendezvous
    import submitit

    job = submitit.JobEnvironment()
    return f"{job.hostnames[0]}:{20_000 + int(job.raw_job_id) % 10_000}"


def launch(
    config: RunConfig,
    output: Any = None,
    env: dict[str, str] | None = None,
    folder: Path | None = None,
    left_s: Callable[[], float] | None = None,
) -> int:
    """Runs the worker to its end and returns its exit code, or STOPPED; a run whose result exists is not repeated.

    `output`: a file for what it prints, else this terminal. `folder`: another than the run's own. `left_s`: seconds that the
    worker may go on, asked every second; when none are left it is killed with all its ranks. Interrupted, it lets the
    worker save a checkpoint; interrupted again, it does not wait for that.
    """
    if result_of(config) is not None:
        print(f"already done: {result_path(config)}", file=output or sys.stdout)
        return 0
    folder = folder or run_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.yaml")
    lr = "" if config.lr is None else f" lr={config.lr:g}"
    steps = f"{config.last_step} steps" if config.knows_steps else f"{config.task.train.epochs} epochs"
    print(f"{run_id(config)}: {steps},{lr} folder {folder}", file=output or sys.stdout, flush=True)
    worker = subprocess.Popen(
        [*_starter(config), "-m", "mora.train", str(folder)],
        stdout=output,
        stderr=output and subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
    )
    _workers[worker] = False
    try:
        code = _wait(worker, left_s)
        if not _workers[worker]:
            return code
        if code < 0:  # it was still loading and could say nothing
            print(f"{run_id(config)}: stopped; start it again to go on", file=output or sys.stderr)
        return STOPPED
    finally:
        del _workers[worker]


def _wait(worker: subprocess.Popen[bytes], left_s: Callable[[], float] | None) -> int:
    try:
        while left_s is not None and (left := left_s()) > 0:
            with suppress(subprocess.TimeoutExpired):
                return worker.wait(min(1.0, left))
        if left_s is not None:
            _send(signal.SIGKILL, {*_ranks(worker), worker.pid})
        return worker.wait()
    except (KeyboardInterrupt, SystemExit):  # SystemExit: submitit, after it has put a job back into the queue
        stop_workers()
    try:
        return worker.wait()
    except (KeyboardInterrupt, SystemExit):
        stop_workers(signal.SIGKILL)
        return worker.wait()


def write_config(config: RunConfig, path: Path) -> None:
    """At once, since several nodes may do it; left alone where it says the same."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if path.is_file() and path.read_text() == text:
        return
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)
