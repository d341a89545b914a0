"""Compare another PEFT method, VeRA, with MoRA: same data, same loop, same scores.

    python examples/add_a_method.py FOLDER [SETTING=VALUE ...]

A method of PEFT's is described by its adapter_config.json, and the suite needs nothing else: `method=peft` trains any
whose update can be merged. Settings go to each run, `scale=lite` for instance; the default is the tiny model of
scale smoke, which runs on a CPU and says nothing about methods. To have the method in a table, add the row

    - {method: peft, settings: [method.config=FOLDER/adapter_config.json]}

to a file of experiments/. Needs the suite, from a checkout.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from peft import VeraConfig


def run(folder: Path, *settings: str) -> float:
    """Train and score one run; return its character accuracy at the last evaluated step."""
    command = [sys.executable, "run.py", "task=uuid", "scale=smoke", f"scale.results_dir={folder}", *settings]
    before = set(folder.glob("*.json"))
    subprocess.run(command, check=True)
    (result,) = set(folder.glob("*.json")) - before
    metrics = json.loads(result.read_text())["metrics"]
    return metrics[max(metrics, key=int)]["uuid_char_acc"]["value"]


def main(folder: str, *settings: str) -> None:
    os.makedirs(folder, exist_ok=True)
    vera = VeraConfig(r=64, target_modules=["q_proj", "v_proj"], save_projection=True)
    vera.save_pretrained(folder)

    results = Path(folder, "results").absolute()
    rows = {
        "MoRA": ["method=mora", "r=4"],
        "VeRA": ["method=peft", f"method.config={folder}/adapter_config.json"],
    }
    for name, choice in rows.items():
        print(f"{name}: {run(results, *choice, *settings):.1%} of the characters")


if __name__ == "__main__":
    main(*sys.argv[1:])
