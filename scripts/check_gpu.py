"""Every method on a GPU, a 7B shape under DeepSpeed, and the training loop on two GPUs against one: times and memory.

python scripts/check_gpu.py methods --out results/checks     # every method on SmolLM2 in bf16, one run per GPU at a time
python scripts/check_gpu.py large --out results/checks       # LLaMA-2-7B's shape, random weights, ZeRO-1
python scripts/check_gpu.py large --ranks 1                  # without the second GPU there is no scaling
python scripts/check_gpu.py methods --only dora none         # some of them
python scripts/check_gpu.py methods --device cpu             # a rehearsal: the same path, tiny shapes, fp32

methods: some steps of UUID pairs, with two restarts where the method has them; `none` has its one loss before training.
large: without dropout. MoRA on one GPU, on all, and on one again, alone on the machine, the same tokens per GPU (8 x 1,024,
half a micro batch where that does not fit). The ratio is over the faster run on one: the first on a machine may be slow. One
above the number of GPUs is no success, as the runs on one were then slow for another reason. Then LoRA, and ReMoRA with a
restart, each on a GPU of its own. step_s and tokens_per_s are medians of the loop's own measurements, four steps each, so
that neither warm-up nor restart is in them; fastest_s is the shortest of those, and far from step_s where a run was
disturbed. peak_gib is rank 0's. ReMoRA leaves 26 GB of fp32 shadow in its last checkpoint, and 14 GB of model, in --scratch.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from mora.checks.runner import CheckRunner, Outcome, Table, add_options, gpus, started_checks
from mora.config import RunConfig, compose
from mora.config.source import ROOT
from mora.errors import ends_in_one_line

METHODS = ("none", "fft", "lora", "lora_plus", "asylora", "dora", "relora", "mora", "remora")
METHODS_OF = {"methods": METHODS, "large": ("mora", "remora", "lora")}
WITHOUT_RANK = ("none", "fft")
RESTARTING = ("relora", "remora")
STEPS = {"methods": 32, "large": 28}
EVERY = {"methods": 12, "large": 14}  # steps between restarts
LOGGED = 4  # steps per measurement of the loop's speed
BAR = 1.85  # the bar on the ratio of tokens per second on two GPUs to those on one
NOISE = 1.02  # the factor by which a ratio may exceed the number of GPUs
COLUMNS = {
    "run": "", "status": "", "ranks": "d", "micro_batch": "d", "trainable": ",d", "first_loss": ".4f", "last_loss": ".4f",
    "restarts": "d", "kept": ".4f", "restart_s": ".2f", "step_s": ".4f", "fastest_s": ".4f", "tokens_per_s": ",.0f",
    "ratio": ".3f", "peak_gib": ".2f", "launch_s": ".0f", "wall_s": ".0f",
}  # fmt: skip


@ends_in_one_line("check_gpu.py")
def main() -> int:
    options = _options()
    facts = {"device": options.device, "steps": STEPS[options.part], "side_by_side": options.jobs}
    if options.device == "cuda":
        facts |= gpus(options.ranks, _method_config("none", "cuda"))
    with started_checks(options) as checks:
        table = Table(options.part, COLUMNS, options.out, facts)
        if options.part == "methods":
            runs = {name: [_method_config(name, options.device)] for name in METHODS if name in options.only}
            _one_gpu_each(table, checks, runs)
        else:
            _large(table, checks, options)
    return 0 if table.rows and all(row["status"] in ("ok", "above the bar") for row in table.rows) else 1


def _one_gpu_each(table: Table, checks: CheckRunner, runs: dict[str, list[RunConfig]]) -> None:
    """Run each on a free GPU, in the given order, with as many at once as there are GPUs."""

    def run(name: str, configs: list[RunConfig]) -> dict[str, Any]:
        with checks.slots.take(ranks=1) as place:
            return _first_that_fits(checks, name, configs, place)

    for row in [checks.pool.submit(run, name, configs) for name, configs in runs.items()]:
        table.add(**row.result())


def _large(table: Table, checks: CheckRunner, options: argparse.Namespace) -> None:
    configs = {
        (method, ranks): [_large_config(method, ranks, micro, options.device) for micro in (8, 4)]
        for method, ranks in [("mora", 1), ("mora", options.ranks), ("lora", 1), ("remora", 1)]
    }
    if "mora" in options.only:
        one = _first_that_fits(checks, "mora", configs["mora", 1], checks.on(0))
        table.add(**one)
        if options.ranks > 1:
            fits = slice(0 if one["micro_batch"] == configs["mora", 1][0].micro_batch_size else 1, None)
            many = _first_that_fits(checks, f"mora x{options.ranks}", configs["mora", options.ranks][fits])
            table.add(**many)
            again = _first_that_fits(checks, "mora again", configs["mora", 1][fits], checks.on(0))
            table.add(**again)
            table.add(**_scaling([one, again], many, options.ranks))
    runs = {name: configs[name, 1] for name in ("remora", "lora") if name in options.only}
    _one_gpu_each(table, checks, runs)


def _scaling(ones: list[dict[str, Any]], many: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Return the row with the ratio of tokens per second to those of the faster run on one GPU.

    There is no comparison if micro batches differ, or if a run failed.
    """
    row: dict[str, Any] = {"run": f"x{ranks} over x1", "status": "not compared", "ranks": ranks}
    ones = [one for one in ones if one["status"] == "ok" and one["micro_batch"] == many["micro_batch"]]
    if many["status"] != "ok" or not ones:
        return row
    speeds = [one["tokens_per_s"] for one in ones]
    ratio = many["tokens_per_s"] / max(speeds)
    row |= {"ratio": ratio, "one_gpu_tokens_per_s": speeds}
    if ratio > ranks * NOISE:
        slow = " and ".join(f"{speed:,.0f}" for speed in speeds)
        why = f"more than {ranks} times one GPU: the runs on one were slow, with {slow} tokens a second; see their fastest_s"
        return row | {"status": "implausible", "last_words": why}
    return row | {"status": "above the bar" if ratio >= BAR * ranks / 2 else "below the bar"}


def _first_that_fits(
    checks: CheckRunner, name: str, configs: list[RunConfig], place: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the row of the first of these runs that fits into the GPU's memory."""
    for config in configs:
        outcome = checks.run(f"{name}-{config.micro_batch_size}".replace(" ", "-"), config, place)
        checks.remove(f"{name}-{config.micro_batch_size}".replace(" ", "-"))
        if "out of GPU memory" not in outcome.words:
            break
    return _row(name, config, outcome)


def _row(name: str, config: RunConfig, outcome: Outcome) -> dict[str, Any]:
    losses, restarts = outcome.losses, outcome.restarts
    row: dict[str, Any] = {
        "run": name, "status": outcome.status, "ranks": config.hardware.world_size,
        "micro_batch": config.micro_batch_size, "parallel": config.parallel, **outcome.measured(),
    }  # fmt: skip
    if losses:
        row |= {"first_loss": losses[0], "last_loss": losses[-1]}
    if restarts:
        row |= {"restarts": len(restarts)} | {key: restarts[-1][f"restart_{key}"] for key in ("kept", "rounding")}
        row |= {"restart_s": max(r["restart_s"] for r in restarts), "all_restart_s": [r["restart_s"] for r in restarts]}
    if outcome.result is not None:
        row |= {"trainable": outcome.result.parameters.trainable, "device": outcome.result.hardware["device"]}
        row |= {"metrics": {step: {k: m.value for k, m in at.items()} for step, at in outcome.result.metrics.items()}}
    if outcome.status != "done":
        return row | {"last_words": outcome.words}
    steps = config.last_step if config.method.trains else 0
    due = (steps - 1) // config.method.restart.every_steps if config.method.restart else 0
    learns = not losses or losses[-1] < losses[0]
    return row | {"status": "ok" if learns and len(losses) == steps and len(restarts) == due else "not as expected"}


def _method_config(name: str, device: str) -> RunConfig:
    overrides = [
        "task=uuid",
        f"scale={'smoke' if device == 'cpu' else 'lite'}",
        f"method={name}",
        f"hardware={'cpu' if device == 'cpu' else 'gpu1'}",
        f"task.train.stop_step={STEPS['methods']}",
        "task.train.warmup_steps=4",
        f"task.train.log_every_steps={LOGGED}",
        "task.evaluation.tasks=[]",
        "task.evaluation.at_steps=[]",
        "task.evaluation.batch_size=50",
        f"task.evaluation.loss_every_steps={STEPS['methods']}",
    ]
    if name not in WITHOUT_RANK:
        overrides += ["r=8"]
    if name != "none":
        overrides += [f"lr={'1e-4' if name == 'fft' else '1e-3'}"]
    if name in RESTARTING:
        overrides += [f"method.restart.every_steps={EVERY['methods']}", "method.restart.warmup_steps=2"]
    return compose(overrides)


def _large_config(method: str, ranks: int, micro: int, device: str) -> RunConfig:
    """Return a run of the large shape.

    ReMoRA has the operator sharing, as in the paper, so that a restart switches its kind of groups, too.
    """
    sequences, length = (8, 1024) if device == "cuda" else (4, 128)
    overrides = [
        "task=biomed",
        "scale=smoke",
        f"scale.precision={'bf16' if device == 'cuda' else 'fp32'}",
        "model=llama2_7b_shape",
        f"method={method}",
        "r=8",
        "lr=3e-4",
        "method.adapter.dropout=0",  # as in docs/performance.md; PEFT's LoRA keeps a masked copy of every input
        f"hardware={'cpu' if device == 'cpu' else 'gpu1'}",
        "hardware.cuda_graphs=false",
        f"hardware.processes={ranks}",
        "hardware.parallel=zero1",
        f"hardware.micro_batch_size={micro * sequences // 8}",
        "task.data.texts.sources=[{kind:synthetic,rows:400,seed:0,format:text}]",
        "task.data.instructions.sources=[{kind:synthetic,rows:2000,seed:1,format:instruction}]",
        f"task.data.max_length={length}",
        "task.data.validation_sequences=0",
        f"task.train.global_batch_size={sequences * ranks}",
        "task.train.epochs=null",
        f"task.train.max_steps={STEPS['large']}",
        f"task.train.log_every_steps={LOGGED}",
        "task.train.checkpoint_every_steps=1000",
        "task.evaluation.tasks=[]",
    ]
    if method in RESTARTING:
        overrides += [f"method.restart.every_steps={EVERY['large']}", "task.operator=sharing"]
    if device == "cpu":
        overrides += [
            "model.tokenizer=null",
            "model.architecture.vocab_size=104",
            "model.architecture.hidden_size=64",
            "model.architecture.intermediate_size=172",
            "model.architecture.num_hidden_layers=2",
            "model.architecture.num_attention_heads=4",
            "model.architecture.num_key_value_heads=4",
        ]
    return compose(overrides)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(STEPS))
    parser.add_argument("--only", choices=METHODS, nargs="+", help="these methods; else all of the part")
    add_options(parser, jobs=2, limit_s=560, run_limit_s=200)
    options = parser.parse_args()
    options.only = options.only or METHODS_OF[options.part]
    if others := [name for name in options.only if name not in METHODS_OF[options.part]]:
        parser.error(f"--only {others[0]}: {options.part} has {', '.join(METHODS_OF[options.part])}")
    return options


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
