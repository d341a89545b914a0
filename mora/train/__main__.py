"""python -m mora.train RUN_DIR: the worker. Reads config.yaml there, resumes from the last checkpoint, writes the result."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import yaml

from mora.config.compose import ConfigError, load, one_line

from .loop import Interrupted
from .restart import RestartFailed
from .worker import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mora.train", description="Runs or resumes one prepared run.")
    parser.add_argument("run_dir", type=Path, help="the folder that run.py made, with its config.yaml")
    folder = parser.parse_args().run_dir
    if not (folder / "config.yaml").is_file():
        print(f"mora.train: {folder} has no config.yaml: start the run through run.py", file=sys.stderr)
        return 2
    try:
        result = run(folder)
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"result: {result}")
    except ConfigError as error:
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
    return 0


def _out_of_memory(folder: Path, error: torch.OutOfMemoryError) -> str:
    config = load(yaml.safe_load((folder / "config.yaml").read_text()))
    micro, first = config.micro_batch_size, str(error).splitlines()[0]
    advice = f"halve it: hardware.micro_batch_size={micro // 2}; the result does not change"
    if micro == 1:
        advice = "it is the smallest: shorten the sequences, take more GPUs, or hardware.parallel=zero3"
    return f"out of GPU memory with hardware.micro_batch_size={micro}; {advice} ({first})"


if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:  # gloo's threads, met by Python's teardown, have aborted a rank that had done everything
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
