"""python -m mora.train RUN_DIR: the worker. Reads config.yaml there, resumes from the last checkpoint, writes the result."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mora.config.compose import ConfigError

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
    except (Interrupted, RestartFailed, OSError) as error:
        print(f"mora.train: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
