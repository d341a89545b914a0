"""python -m mora.evaluate MODEL --task T: scores a checkpoint or adapter outside a run, resuming where it was cut."""

from __future__ import annotations

import argparse
import sys

from mora.config.arguments import device, output_folder, positive_int
from mora.errors import ends_in_one_line
from mora.imports import uncollected
from mora.models.arguments import model

MAX_LENGTH = "maximum tokens of prompt and answer; default: 2048, more if a task's answers need it"


def parse(arguments: list[str] | None = None, prog: str = "python -m mora.evaluate") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("model", type=model, help="a folder, hub id, adapter folder, or a name in configs/model")
    tasks = "tasks of this suite or lm-eval, separated by blanks or commas; mora/evaluate/tasks/README.md"
    unmerged = "score an adapter beside its base, as it was trained; by default it is merged, which rounds its update"
    parser.add_argument("--unmerged", action="store_true", help=unmerged)
    parser.add_argument("--task", "--tasks", required=True, nargs="+", help=tasks)
    parser.add_argument("--data-dir", help="folder of local records; default: MORA_DATA_DIR, else the hub")
    parser.add_argument("--limit", type=positive_int, help="only the first documents of each task")
    parser.add_argument("--batch-size", type=positive_int, default=64)
    parser.add_argument("--max-length", type=positive_int, help=MAX_LENGTH)
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", type=device, help="default: cuda if there is a GPU")
    where = "default: evaluation/MODEL in MORA_OUTPUT_DIR, else in outputs/"
    parser.add_argument("--output", type=output_folder, help=where)
    options = parser.parse_args(arguments)
    options.task = [name for words in options.task for name in words.split(",") if name]
    return options


@ends_in_one_line("mora.evaluate", stopped="stopped; start it again to resume")
def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with uncollected():  # this imports torch, which --help and errors need not wait for
        from mora.train.run_messages import quiet

        from .score_checkpoint import run

    quiet()
    print(run(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
