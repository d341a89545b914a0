"""Make a task of your own rows: train on them with LoRA and MoRA, and compare the loss on held-out rows.

    python examples/add_a_task.py ROWS.jsonl FOLDER [SETTING=VALUE ...]

ROWS holds one JSON object per line with "instruction", "input" and "output". A task is a training recipe with its data and
its evaluations; a recipe that exists takes other rows by settings alone. Here it is that of Tulu v2: chat turns, loss on
the answers. Further settings go to each run, `scale=lite` for instance; the default is the tiny model of scale smoke. A
task with a name, a recipe or a scorer of its own: docs/how-to/add-a-task.md. Needs the suite, from a checkout.
"""

import json
import subprocess
import sys
from pathlib import Path


def run(rows: Path, results: Path, *settings: str) -> float:
    """Train one run and return its loss on the held-out rows."""
    source = f"{{kind: files, files: '{rows}', format: instruction, sha256: null, max_rows: null}}"
    task = [
        "task=tulu2",
        f"task.data.corpus.sources=[{source}]",
        "task.data.overlap.sets=[]",  # evaluation sets to keep out of the training rows
        "task.evaluation.tasks=[]",  # lm-eval tasks to score, by name
    ]
    before = set(results.glob("*.json"))
    command = [sys.executable, "run.py", "scale=smoke", *task, f"scale.results_dir={results}", *settings]
    subprocess.run(command, check=True)
    (result,) = set(results.glob("*.json")) - before
    metrics = json.loads(result.read_text())["metrics"]
    return metrics[max(metrics, key=int)]["validation_loss"]["value"]


def main(rows: str, folder: str, *settings: str) -> None:
    results = Path(folder).absolute()
    results.mkdir(parents=True, exist_ok=True)
    for method in ("lora", "mora"):
        loss = run(Path(rows).absolute(), results, f"method={method}", "r=4", *settings)
        print(f"{method}: held-out loss {loss:.3f} nats per token")


if __name__ == "__main__":
    main(*sys.argv[1:])
