"""Score two checkpoints on the same task and test whether the difference is more than chance.

    python examples/score_checkpoint.py TASK FIRST SECOND OUTPUT [--data-dir DATA] [--limit N]

FIRST and SECOND are folders, Hub ids, names of configs/model, or adapter folders (LoRA or MoRA). TASK is one of ours
(mora/evaluate/tasks/README.md) or of lm-eval's. Further options go to `mora evaluate`. Needs the suite, from a checkout.
"""

import json
import sys
from pathlib import Path

from mora.__main__ import main as mora  # the command `mora`, called from Python


def main(task: str, first: str, second: str, output: str, *options: str) -> int:
    folders = [f"{output}/first", f"{output}/second"]
    for model, folder in zip((first, second), folders, strict=True):
        if failed := mora(["evaluate", model, "--task", task, "--output", folder, *options]):
            return failed  # its message says why
        metrics = json.loads(Path(folder, "result.json").read_text())["metrics"]
        print(model, json.dumps(metrics, indent=2))

    # Paired over the documents: bootstrap, McNemar, and Holm's correction over the tasks.
    return mora(["compare", *folders])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
