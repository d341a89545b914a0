"""Workers forked from one server that has imported the heavy packages once: a start takes a second, not eight."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

context = multiprocessing.get_context("forkserver")
PRELOADED = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "hydra",
    "lm_eval.evaluator",
    "lm_eval.tasks",
    "mora.config.hydra_compose",
    "mora.evaluate.backend",
    "mora.families.tools.targets",
    "mora.train.worker",
    "mora.train.zero",
)
context.set_forkserver_preload(list(PRELOADED))


def warm() -> None:
    """Waits until the server is there: what is timed then is a worker's own time."""
    process = context.Process(target=int)
    process.start()
    process.join()


def start(folder: Path, env: Mapping[str, str], ranks: int = 1) -> list[ForkServerProcess]:
    """`python -m mora.train FOLDER`, one process a rank; what they print is added to `output.txt` there."""
    places: list[dict[str, str]] = [{}]
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        places = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    workers = [context.Process(target=_work, args=(folder, {**env, **place})) for place in places]
    for worker in workers:
        worker.start()
    return workers


def _work(folder: Path, env: dict[str, str]) -> None:
    import torch

    from mora.train.__main__ import process

    with open(folder / "output.txt", "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    torch.set_num_threads(1)
    sys.argv = ["mora.train", str(folder)]
    process()
