"""One interval of each kind of the ledger, from the committed files alone: no module of this repository is imported.

python docs/examples/recompute.py                      # over seeds: MoRA - LoRA at r=32 in Table 2, scale lite; and exact
python docs/examples/recompute.py A.jsonl.zst B.jsonl.zst   # over documents: of results/documents, a task a line
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import zstandard
from scipy import stats

ROOT = Path(__file__).parents[2]


def over_seeds():
    """Points, the mean over the steps, paired by seed; the variance is pooled over the four contrasts of the table."""
    rows = list(csv.DictReader((ROOT / "results/tables/table2-lite.csv").read_text().splitlines()))

    def row(method, r):
        cells = [line for line in rows if (line["method"], line["r"], line["operator"]) == (method, r, "")]
        runs = [
            json.loads((ROOT / f"results/runs/{run}.json").read_text())["metrics"] for run in cells[0]["runs"].split()
        ]
        values = [[run[line["column"].removeprefix("step_")]["uuid_char_acc"] for line in cells] for run in runs]
        return np.array([[100 * (v["value"] if isinstance(v, dict) else v) for v in run] for run in values]).mean(1)

    fft, lora_1, lora_32 = row("fft", ""), row("lora", "1"), row("lora", "32")
    table = [row("mora", "32") - lora_32, row("mora", "1") - lora_1, lora_32 - lora_1, fft - lora_32]
    pooled, df = np.mean([d.var(ddof=1) for d in table]), sum(len(d) - 1 for d in table)
    return stats.t.interval(0.95, df, table[0].mean(), np.sqrt(pooled / len(table[0])))


def over_documents(first, second):
    """By task whose score is a mean: the paired difference in points."""
    read = [zstandard.ZstdDecompressor().decompress(Path(p).read_bytes(), 2**30).splitlines() for p in (first, second)]
    for a, b in zip(*([json.loads(line) for line in lines] for lines in read), strict=True):
        if a["header"]["aggregation"] == "mean" and a["clusters"] is None:
            assert a["header"]["prompts"] == b["header"]["prompts"], "other documents"
            d = 100 * np.subtract(a["items"], b["items"])
            yield a["header"]["task"], stats.norm.interval(0.95, d.mean(), stats.sem(d))


def exact(right, asked):
    """Of a share with few right answers, in points: Clopper and Pearson's."""
    return [100 * float(limit) for limit in stats.binomtest(right, asked).proportion_ci(0.95, "exact")]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        for task, (low, high) in over_documents(*sys.argv[1:]):
            print(f"{task}: [{low:+.2f}, {high:+.2f}] points")
    else:
        print("MoRA - LoRA, r=32: [{:+.1f}, {:+.1f}] points".format(*over_seeds()))
        print("7 of 500 right: [{:.2f}, {:.2f}] %".format(*exact(7, 500)))
