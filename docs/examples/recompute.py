"""An interval of each kind of the ledger from the committed files alone; nothing of this repository is imported.

python docs/examples/recompute.py
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

RESULTS = Path(__file__).parents[2] / "results"

# Over seeds: MoRA - LoRA at r=32 in Table 2, the mean over steps in points. As seeds are few, the variance of a seed's
# difference is pooled over the contrasts of the table that are judged. An equality has the interval of 90%.
table = pd.read_csv(RESULTS / "tables/table2-lite.csv", dtype=str, keep_default_na=False).query("operator == ''")
cells = table.groupby(["method", "r"]).seeds.agg(" ".join)
row = {key: np.array(seeds.split(), float).reshape(-1, 3).mean(0) for key, seeds in cells.items()}
lora, low = row["lora", "32"], row["lora", "1"]
contrasts = np.array([row["mora", "32"] - lora, row["mora", "1"] - low, lora - low, row["fft", ""] - lora])
error = np.sqrt(contrasts.var(1, ddof=1).mean() / 3)
order, equality = (stats.t.interval(level, 4 * (3 - 1), contrasts[0].mean(), error) for level in (0.95, 0.9))
print("seeds: MoRA - LoRA, r=32: [{:+.1f}, {:+.1f}], as equality [{:+.1f}, {:+.1f}] points".format(*order, *equality))

# Over documents: ReLoRA - LoRA in Table 3, the log of perplexity over blocks of equal length. Of shares, items are 0 or 1.
paths = (next(RESULTS.glob(f"documents/c4-{name}-r128-lr2e-3-s1-*")) for name in ("relora", "lora"))
first, second = (pd.read_json(path, lines=True).iloc[0] for path in paths)
assert first.header["prompts"] == second.header["prompts"], "other documents"
x, y = (-np.divide(*np.transpose(task["items"])) for task in (first, second))
documents = stats.norm.interval(0.95, (x - y).mean(), stats.sem(x - y))
print("documents: ReLoRA - LoRA, seed 1: [{:+.4f}, {:+.4f}] nats".format(*documents))

# Exact, of few right answers: LoRA r=32 - FFT on MATH-500; the limits of each share are combined by their squares.
names = ("metamath-lora-r32-lr3e-3-s0-3cb893272c", "metamath-fft-lr1e-4-s0-2fa5bc9f68")
scores = [json.loads((RESULTS / f"outdated/validation_by_block/{name}.json").read_text())["metrics"] for name in names]
right = [round(500 * metrics[max(metrics, key=int)]["metamath_math500.score"]) for metrics in scores]
(p, p_low, p_high), (q, q_low, q_high) = ((k / 500, *stats.binomtest(k, 500).proportion_ci()) for k in right)
exact = 100 * (p - q - np.hypot(p - p_low, q_high - q)), 100 * (p - q + np.hypot(p_high - p, q - q_low))
print("exact: LoRA - FFT, {} and {} of 500 right: [{:+.2f}, {:+.2f}] points".format(*right, *exact))

# Of a ratio of times: of eight rounds, the sign test's interval of the ratios within rounds is their range. This is the
# measurement of four whose interval reaches highest.
bench = json.loads((RESULTS / "bench/step-full-nvidia-h100-80gb-hbm3.json").read_text())["scenarios"][3]
ms = {case["name"]: case["ms"] for case in bench["cases"]}
times = np.quantile(np.divide(ms["mora rotation r=8"], ms["lora r=8"]), [0, 1])
print("times: rotation over LoRA, r=8, LLaMA-2-7B: [{:.3f}, {:.3f}]".format(*times))
