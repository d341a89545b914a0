"""Start the missing runs of experiments, then render their tables and figures; with --plan, print the runs' cost instead."""

from __future__ import annotations

import argparse
from pathlib import Path

from mora.config.arguments import positive_int
from mora.config.hardware_schema import SCALES
from mora.errors import MoraError
from mora.planner.gpus import H100, KNOWN, Gpu, gpu


def parse(arguments: list[str] | None = None, prog: str = "python -m mora.suite") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments, such as table2 figure3")
    parser.add_argument("--scale", choices=SCALES, help="default: paper; the output names it")
    parser.add_argument("--jobs", type=positive_int, default=1, help="runs side by side; with --hardware slurm: nodes")
    parser.add_argument("--seeds", type=positive_int, help="seeds 0 to N-1 instead of the experiment's")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KEY=VALUE,...",
        help="run (or plan) only these cells: task=metamath,biomed method=lora,mora r=8 (of Table 4: operator=sharing); "
        "the whole table is rendered",
    )
    where = (
        "hardware of the runs or their plan, a name in configs/hardware; default: auto, for plans gpu8 at scale paper, "
        "else gpu1"
    )
    parser.add_argument("--hardware", metavar="NAME", help=where)
    settings = (
        "overrides that change no result, for every run (hardware.cuda_graphs=false) or job "
        "(hydra.launcher.partition=NAME)"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=settings)
    planned = "start nothing; print the missing runs with their cost, or the command of each"
    parser.add_argument("--plan", nargs="?", const="table", choices=["table", "commands"], help=planned)
    known = f"of the plan: {', '.join(KNOWN)}, or by hand GIB,TFLOPS"
    parser.add_argument("--gpu", type=_gpu, default=H100, help=known)
    parser.add_argument("--force", action="store_true", help="repeat runs that have results, which move to earlier/")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="folder of runs, tables, figures instead of results/"
    )
    parser.add_argument("--render", action="store_true", help="only render all committed results again")
    return parser.parse_args(arguments)


def _gpu(text: str) -> Gpu:
    try:
        return gpu(text)
    except MoraError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
