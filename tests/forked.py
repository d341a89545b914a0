"""Processes forked from one server that has imported the heavy packages once: a start takes a second, not eight."""

import os
import sys

from mora.config import run_id
from mora.faults.forked import PRELOADED, context
from mora.suite.launch import write_config

context.set_forkserver_preload([*PRELOADED, "tiny_runs"])


def start(config, outputs, kill_at=None):
    """`python -m mora.train RUN_DIR`, in a folder under `outputs` as run.py makes it. Returns process and folder."""
    folder = outputs / run_id(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.yaml")
    process = context.Process(target=_worker, args=(folder, kill_at))
    process.start()
    return process, folder


def train(config, outputs, kill_at=None):
    """The same, to its end. Returns exit code and output."""
    process, folder = start(config, outputs, kill_at)
    process.join(timeout=120)
    assert process.exitcode is not None, f"still running: {folder}"
    return process.exitcode, (folder / "output.txt").read_text()


def _worker(folder, kill_at):
    import torch

    from mora.train.__main__ import main

    with open(folder / "output.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if kill_at:
        os.environ["MORA_KILL_AT"] = kill_at
    sys.argv = ["mora.train", str(folder)]
    sys.exit(main())
