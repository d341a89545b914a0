"""A claim's interval over seeds and documents from the committed files alone; nothing of this repository is imported.

python docs/examples/recompute_claim.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(__file__).parents[2] / "results"

# MoRA - LoRA on GSM8K at scale mid, an equality. The squares of the two errors add up; the
# variance of a seed is that of Table 1's twelve contrasts in points, weighted by degrees of freedom, which are the seeds'.
table = pd.read_csv(RESULTS / "tables/table1-mid.csv", dtype=str, keep_default_na=False).query("setting == ''")
table = table.set_index(["method", "r", "column"])
mmlu, gsm8k, pubmed, finance = ["mmlu_0shot", "mmlu_5shot"], ["gsm8k"], ["biomed_local"], ["finance_local"]
mora, lora, high, fft = ("mora", "4"), ("lora", "4"), ("lora", "96"), ("fft", "")
judged = [(lora, fft, mmlu), (mora, lora, mmlu), (mora, lora, gsm8k), (fft, lora, gsm8k), (high, fft, gsm8k)]
judged += [(mora, lora, pubmed), (mora, lora, finance), (fft, high, pubmed + finance), (high, ("relora", "96"), gsm8k)]
judged += [((name, "4"), lora, gsm8k + pubmed) for name in ("lora_plus", "asylora", "dora")]


def by_seed(row, columns):
    return np.mean([np.array(table.seeds[(*row, column)].split(), float) for column in columns], 0)


differences = [by_seed(first, columns) - by_seed(second, columns) for first, second, columns in judged]
freedom = np.array([len(d) - 1 for d in differences])
variance = np.average([d.var(ddof=1) for d in differences], weights=freedom)
runs = [table.runs[(*row, "gsm8k")].split() for row in judged[2][:2]]
tasks = [[pd.read_json(RESULTS / f"documents/{run}.jsonl.zst", lines=True) for run in of_row] for of_row in runs]
items = [
    np.mean([t["items"][[h["task"] == "metamath_gsm8k" for h in t.header]].iloc[0] for t in ts], 0) for ts in tasks
]
error = np.hypot(np.sqrt(variance / 3), 100 * stats.sem(items[0] - items[1]))
both = stats.t.interval(0.9, freedom.sum(), differences[2].mean(), error)
print("both: MoRA - LoRA, GSM8K, r=4: [{:+.1f}, {:+.1f}] points".format(*both))
