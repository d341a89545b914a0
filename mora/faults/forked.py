"""Workers forked from one server that has imported the heavy packages once: a start takes a second, not eight."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["mora.faults.preloaded"])


Prepare = Callable[[], None]


def as_it_is() -> None:
    """Prepare nothing."""


def warm() -> None:
    """Wait until the fork server is there, so that what is timed afterwards is a worker's own time."""
    process = context.Process(target=int)
    process.start()
    process.join()


def start(folder: Path, env: Mapping[str, str], ranks: int = 1, prepare: Prepare = as_it_is) -> list[ForkServerProcess]:
    """Start `python -m mora.train FOLDER`, one process per rank.

    Args:
        folder: The run's folder. What the processes print is added to its `output.txt`.
        env: Environment variables of the processes.
        ranks: The number of processes.
        prepare: A function at the top of a module, called in each process first.
    """
    places: list[dict[str, str]] = [{}]
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    workers = [context.Process(target=_work, args=(folder, {**env, **place}, prepare)) for place in places]
    for worker in workers:
        worker.start()
    return workers


def command(
    module: str, arguments: list[str], output: Path, env: Mapping[str, str], prepare: Prepare
) -> ForkServerProcess:
    """`python -m MODULE ARGUMENTS`, for modules with a `main(arguments)`; what it prints is added to `output`."""
    process = context.Process(target=_command, args=(module, arguments, output, dict(env), prepare))
    process.start()
    return process


def _command(module: str, arguments: list[str], output: Path, env: dict[str, str], prepare: Prepare) -> None:
    _set_up(output, env)
    prepare()
    sys.exit(importlib.import_module(module).main(arguments))


def _work(folder: Path, env: dict[str, str], prepare: Prepare) -> None:
    from mora.train.__main__ import process

    _set_up(folder / "output.txt", env)
    prepare()
    sys.argv = ["mora.train", str(folder)]
    process()


def _set_up(output: Path, env: dict[str, str]) -> None:
    import torch

    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    torch.set_num_threads(1)
