"""python -m mora.data TASK --scale lite: prepares a task's training data and prints what came of them."""

from __future__ import annotations

import argparse
import json
import sys

from mora.config import compose
from mora.config.arguments import positive_int
from mora.config.hardware_schema import SCALES
from mora.config.hints import choices
from mora.errors import ends_in_one_line

from . import load


def parse(arguments: list[str] | None = None, prog: str = "python -m mora.data") -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "task", type=lambda given: given.removeprefix("task="), help=f"one of {', '.join(choices('task'))}"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], help="as for run.py, for example task.data.packing=isolated"
    )
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--workers", type=positive_int, default=None, help="processes; all cores unless given")
    return parser.parse_intermixed_args(arguments)


@ends_in_one_line("mora.data", stopped="stopped; start it again to resume")
def main(arguments: list[str] | None = None) -> int:
    """Prepare the data of a task, and return the exit code."""
    args = parse(arguments)
    config = compose([f"task={args.task}", f"scale={args.scale}", "method=none", *args.overrides])
    from mora.models.tokenizers import load_tokenizer  # imports torch, which --help and errors need not wait for

    data = load(config, load_tokenizer(config.model), args.workers)
    print(json.dumps(data.fingerprints, indent=1))
    print(data.report.text(f"{args.task} at scale {args.scale}"))
    if data.validation:
        print(f"  held out for validation: {len(data.validation):,} sequences")
    train = config.task.train
    print(f"  {train.total_steps(len(data.samples)):,} steps of {train.global_batch_size} sequences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
