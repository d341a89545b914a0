"""python -m mora.suite table2 figure3 --scale lite: the missing runs of an experiment, then its table or figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mora.config import ConfigError
from mora.config.arguments import positive_int

from . import claims, figures, plan, runner, settings, tables
from . import experiment as experiments
from .experiment import Experiment, Grid, Scale


def main() -> int:
    args = _arguments()
    try:
        loaded = {name: experiments.load(name) for name in args.names or experiments.names()}
    except FileNotFoundError as error:
        print(f"mora.suite: {error}", file=sys.stderr)
        return 2
    scales: list[Scale] = ["lite", "paper"] if args.render else [args.scale]
    seeds = list(range(args.seeds)) if args.seeds else None
    try:
        rows = {(name, s): experiments.grids(e, s, seeds) for name, e in loaded.items() for s in scales}
        everything = experiments.only([grid for group in rows.values() for row in group for grid in row], args.only)
        if args.plan:
            print(plan.text(everything, args.hardware or ("gpu8" if args.scale == "paper" else "gpu1")))
            return 0
        failed = [] if args.render else runner.complete(everything, args.jobs)
        for (name, scale), group in rows.items():
            print(_render(name, loaded[name], group, scale, measure=not args.render))
        if args.render and not args.names:
            claims.render()
    except (ConfigError, OSError) as error:
        print(f"mora.suite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mora.suite: stopped; start it again to go on from the checkpoints", file=sys.stderr)
        return 130
    if failed:
        print(f"mora.suite: {len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _render(name: str, experiment: Experiment, rows: list[list[Grid]], scale: Scale, measure: bool) -> str:
    if experiment.kind == "settings":
        if scale != "paper":
            return f"{name}: at scale paper only"
        path = settings.render(name, experiment, figures.output_folder("paper", "tables"))
    elif experiment.kind == "table":
        path = tables.render(name, experiment, rows, scale, figures.output_folder(scale, "tables"))
    else:
        if experiment.kind == "spectrum" and measure:
            runner.measure_spectra([grid for row in rows for grid in row])
        drawn = figures.render(name, experiment, rows, scale, figures.output_folder(scale, "figures"))
        return f"figure: {_relative(drawn)}" if drawn else f"{name}, scale {scale}: nothing to draw yet"
    return f"{path.read_text()}\n{_relative(path)}"


def _relative(path: Path) -> Path:
    return path.relative_to(experiments.ROOT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mora.suite", description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments; all of them if none is named")
    parser.add_argument("--scale", choices=["smoke", "lite", "mid", "paper"], default="paper")
    parser.add_argument("--jobs", type=positive_int, default=1, help="runs side by side")
    parser.add_argument("--seeds", type=positive_int, help="seeds 0 to N-1, instead of the experiment's")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="KEY=VALUE,...",
        help="run (or plan) these cells alone: task=metamath,biomed method=lora,mora r=8 (of Table 4: operator=sharing); "
        "the whole table is rendered",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the runs that are missing and what they cost; start none"
    )
    parser.add_argument("--hardware", help="of the plan: a name in configs/hardware (gpu8 for scale paper, else gpu1)")
    parser.add_argument("--render", action="store_true", help="only render lite and paper results again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
