"""python -m mora.train RUN_DIR: the worker. It reads config.yaml there, resumes from a checkpoint and writes the result."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

# CUDA reads this when it starts. Memory is then one growing segment instead of a block for each size of a pass.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# Steps are captured, so that launches cost nothing, and a rotation's cosines are not rounded to bf16.
os.environ.setdefault("MORA_KERNELS", "fused")

from mora.imports import uncollected

with uncollected():
    import torch
    import yaml

    from mora.config.load import load_run
    from mora.errors import MoraError, one_line
    from mora.io import replace_file
    from mora.restarts.restart import RestartFailed

    from . import launcher_watch
    from .run_messages import quiet
    from .stop_signal import Interrupted
    from .worker import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mora.train", description="Runs or resumes one prepared run.")
    parser.add_argument("run_dir", type=Path, help="the folder that run.py made, with its config.yaml")
    folder = parser.parse_args().run_dir
    if not (folder / "config.yaml").is_file():
        print(f"mora.train: {folder} has no config.yaml: start the run through run.py", file=sys.stderr)
        return 2
    try:
        if "RANK" not in os.environ:  # a rank must end at once, not wait for others that have ended
            _stop_in_order()
        launcher_watch.watch()
        quiet()
        result = run(folder)
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"result: {result}")
    except MoraError as error:
        print(f"mora.train: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"mora.train: {_out_of_memory(folder, error)}", file=sys.stderr)
        return 1
    except Interrupted as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"mora.train: {error}", file=sys.stderr)
        return int("RANK" not in os.environ)  # torchrun would report an error code as the death of a rank
    except (RestartFailed, OSError, yaml.YAMLError) as error:
        print(f"mora.train: {one_line(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if (line := _of_memory_or_ranks(error)) is None:
            raise
        print(f"mora.train: {line}", file=sys.stderr)
        return 1
    return 0


def _stop_in_order() -> None:
    """Let signals end a process that does not train (yet) in an orderly way, so that its GPU context is closed."""

    def stop(*_: Any) -> NoReturn:
        raise Interrupted("stopped by a signal; checkpoints and answers so far are kept; start the same run to resume")

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)


def _of_memory_or_ranks(error: RuntimeError | MemoryError) -> str | None:
    """Return the message for an error of missing memory or of a lost connection to another rank; None for other errors."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return f"out of CPU memory: {one_line(error) or 'Python asked in vain for more'}"
    if "by peer" in str(error):  # gloo and NCCL: the connection was closed or reset by the peer
        return f"rank {os.environ.get('RANK')}: another rank has ended, and says why ({one_line(error):.100})"
    return None


def _out_of_memory(folder: Path, error: torch.OutOfMemoryError) -> str:
    config = load_run(folder)
    hardware, first = config.hardware, str(error).splitlines()[0]
    # The launcher reads this, and may choose a smaller micro batch: torchrun does not pass on the exit code of a rank.
    replace_file(folder / "out_of_memory.json", json.dumps({"micro_batch_size": config.micro_batch_size}))
    name, micro = "micro_batch_size", config.micro_batch_size
    share = config.task.train.global_batch_size // hardware.world_size
    smaller = max((n for n in range(1, micro // 2 + 1) if share % n == 0), default=0)
    if hardware.micro_batch_tokens is not None:
        name, micro, smaller = "micro_batch_tokens", hardware.micro_batch_tokens, hardware.micro_batch_tokens // 2
    advice = f"{'halve' if 2 * smaller == micro else 'lower'} it: hardware.{name}={smaller}"
    if micro == 1:
        advice = "it is the smallest: shorten the sequences, use more GPUs, or hardware.parallel=zero3"
    return f"out of GPU memory with hardware.{name}={micro}; {advice} ({first})"


def process() -> NoReturn:
    """Run `main` and end the process with the exit code that it returns."""
    code = 1
    try:
        code = main()
    finally:
        # A rank ends without Python's teardown, in which gloo's threads have aborted a rank that had done everything. After
        # an error, NCCL may wait there for the other ranks, while torchrun ends them only once this one has ended.
        if "RANK" in os.environ:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    process()
