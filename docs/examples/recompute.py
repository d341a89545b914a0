"""An interval of each kind of the ledger from the committed files alone; nothing of this repository is imported.

python docs/examples/recompute.py                           # over seeds, and exact
python docs/examples/recompute.py A.jsonl.zst B.jsonl.zst   # over documents: two of results/documents, a task a line
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
    """MoRA - LoRA at r=32 in Table 2, the mean over steps in points; the variance is pooled over the table's contrasts."""
    lines = list(csv.DictReader((ROOT / "results/tables/table2-lite.csv").read_text().splitlines()))

    def row(method, r):
        cells = [
            line["seeds"].split() for line in lines if (line["method"], line["r"], line["operator"]) == (method, r, "")
        ]
        return np.array(cells, dtype=float).mean(0)

    fft, lora_1, lora_32 = row("fft", ""), row("lora", "1"), row("lora", "32")
    table = np.array([row("mora", "32") - lora_32, row("mora", "1") - lora_1, lora_32 - lora_1, fft - lora_32])
    error = np.sqrt(table.var(1, ddof=1).mean() / table.shape[1])
    return stats.t.interval(0.95, len(table) * (table.shape[1] - 1), table[0].mean(), error)


def over_documents(first, second):
    """By task: the paired difference of shares in points, or of perplexities over equal blocks in nats a token."""
    read = [zstandard.ZstdDecompressor().decompress(Path(p).read_bytes(), 2**30).splitlines() for p in (first, second)]
    for a, b in zip(*([json.loads(line) for line in lines] for lines in read), strict=True):
        kind = a["header"]["aggregation"]
        if kind in ("mean", "perplexity") and a["clusters"] is None:
            assert a["header"]["prompts"] == b["header"]["prompts"], "other documents"
            x, y = (
                100 * np.array(f["items"]) if kind == "mean" else -np.divide(*np.transpose(f["items"])) for f in (a, b)
            )
            yield a["header"]["task"], stats.norm.interval(0.95, (x - y).mean(), stats.sem(x - y))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(*over_documents(*sys.argv[1:]), sep="\n")
    else:
        print("MoRA - LoRA, r=32: [{:+.1f}, {:+.1f}] points".format(*over_seeds()))
        print("7 of 500 right:", stats.binomtest(7, 500).proportion_ci(0.95, "exact"))
