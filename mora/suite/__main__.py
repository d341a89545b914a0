"""python -m mora.suite table2 figure3 --scale lite: the missing runs of an experiment, then its table or figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mora.config import ConfigError, run_id

from . import experiment as experiments
from . import figures, runner, tables
from .experiment import Grid


def main() -> int:
    args = _arguments()
    chosen = args.names or experiments.names()
    try:
        loaded = {name: experiments.load(name) for name in chosen}
    except FileNotFoundError as error:
        print(f"mora.suite: {error}", file=sys.stderr)
        return 2
    scales: list[Any] = ["lite", "paper"] if args.render else [args.scale]
    grids = {
        (name, scale): [Grid(experiment, scale, row) for row in experiment.scales[scale].rows]
        for name, experiment in loaded.items()
        for scale in scales
    }
    everything = [grid for group in grids.values() for grid in group]
    if args.plan:
        for config in runner.plan(everything):
            train = config.task.train
            length = f"{config.last_step} steps" if config.knows_steps else f"{train.epochs} epochs"
            print(f"{run_id(config)}  {length} of {train.global_batch_size} sequences a step")
        return 0
    failed: list[str] = []
    if not args.render:
        try:
            failed = runner.complete(everything, args.jobs)
        except ConfigError as error:
            print(f"mora.suite: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("mora.suite: stopped; start it again to go on from the checkpoints", file=sys.stderr)
            return 130
    for (name, scale), group in grids.items():
        print(_render(name, loaded[name], group, scale))
    if failed:
        print(f"mora.suite: {len(failed)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _render(name: str, experiment: experiments.Experiment, group: list[Grid], scale: str) -> str:
    folder = figures.output_folder(scale, experiment.kind)
    if experiment.kind == "table":
        path = tables.render(name, experiment, group, scale, folder)
        return f"{path.read_text()}\n{_relative(path)}"
    return f"figure: {_relative(figures.render(name, experiment, group, scale, folder))}"


def _relative(path: Path) -> Path:
    return path.relative_to(experiments.ROOT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mora.suite", description=__doc__)
    parser.add_argument("names", nargs="*", help="experiments; all of them if none is named")
    parser.add_argument("--scale", choices=["smoke", "lite", "paper"], default="paper")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--plan", action="store_true", help="print the runs that are missing, start none")
    parser.add_argument("--render", action="store_true", help="only render lite and paper results again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
