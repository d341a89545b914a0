"""The whole training loop, ours with MoRA against HF Trainer with PEFT LoRA: real tokens per second on the same samples."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from mora.adapter import MoraConfig
from mora.config.train_schema import Train
from mora.data.batches import Batches
from mora.data.samples import IGNORE, Sample
from mora.models.fused import use_fused_layers
from mora.models.structure import trains_without_padding
from mora.train.engine import TorchEngine

from .models import SHAPES, build_base, dtype_on

TRAIN = {
    "stop_step": None, "epochs": 1,
    "max_steps": None, "schedule": "constant", "warmup_steps": 0, "min_lr_ratio": 0.0, "weight_decay": 0.0,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_eps": 1e-8, "max_grad_norm": 1.0, "log_every_steps": 10,
    "checkpoint_every_steps": 1000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """Samples of random tokens, with lengths like MetaMathQA's in the Alpaca template: log-normal, median 250.

    warm_up_steps: updates that are not timed. Ours captures a CUDA graph of a pass when its shape comes for the third time.
    unsloth_micro_batches: pairs of the number of samples and whether they are laid end to end instead of padded.
    """

    shape: str
    samples: int
    global_batch_size: int
    hf_micro_batches: tuple[int, ...]
    our_micro_tokens: tuple[int, ...]
    unsloth_micro_batches: tuple[tuple[int, bool], ...]
    warm_up_steps: int = 2


PLANS = {
    "full": Plan(
        "llama2_7b", 1024, 64, (4, 8, 16), (8192, 16384), ((16, False), (32, True), (64, True)), warm_up_steps=8
    ),
    "small": Plan("smollm2_135m", 2048, 64, (16, 32), (8192,), ((16, False), (64, True)), warm_up_steps=8),
    "smoke": Plan("tiny", 16, 4, (4,), (512,), ((4, False),), warm_up_steps=1),
}


def lengths(plan: Plan) -> list[int]:
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(np.log(250), 0.45, plan.samples), 60, 1024).astype(int).tolist()


def samples(plan: Plan) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, SHAPES[plan.shape]["vocab_size"], n).tolist() for n in lengths(plan)]


def compare(plan: Plan, device: torch.device) -> dict[str, Any]:
    """Return one row per opponent and micro batch, including runs that do not fit into memory."""
    data, rows = samples(plan), []
    for size in plan.hf_micro_batches:
        rows.append(_row("HF Trainer, PEFT LoRA r=8", size, lambda size=size: _hugging_face(plan, data, size, device)))
    for tokens in plan.our_micro_tokens:
        rows.append(_row("ours, MoRA r=8", f"{tokens} tokens", lambda tokens=tokens: _ours(plan, data, tokens, device)))
    sizes = lengths(plan)
    return {
        "shape": plan.shape,
        "rows": rows,
        "data": {
            "samples": plan.samples, "global_batch_size": plan.global_batch_size, "tokens": sum(sizes),
            "shortest": min(sizes), "median": int(statistics.median(sizes)), "longest": max(sizes),
        },
    }  # fmt: skip


def _row(who: str, micro_batch: int | str, run: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"who": who, "micro_batch": micro_batch}
    on_gpu = torch.cuda.is_available()
    gc.collect()  # frees the last run's model, which is in reference cycles with its trainer
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        row["tokens_per_s"] = run()
        row["peak_bytes"] = torch.cuda.max_memory_allocated() if on_gpu else None
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    print(f"  {row}", flush=True)
    return row


class Clock:
    """Measures real tokens per second over the steps after the warm-up."""

    def __init__(self, warm_up_steps: int, device: torch.device):
        self.left, self.device, self.tokens = warm_up_steps, device, 0
        self.start = self.stop = time.perf_counter()

    def tick(self, tokens: int) -> None:
        if self.device.type == "cuda" and self.left == 1:
            torch.cuda.synchronize()  # once, when the measurement begins
        if self.left > 0:
            self.left -= 1
            self.start = time.perf_counter()
        else:
            self.tokens += tokens

    def rate(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.tokens / (time.perf_counter() - self.start)


class Ticks(TrainerCallback):
    """Tells the clock of every optimizer step. To `counts` the collator appends the real tokens of each micro batch.

    The loader is a micro batch ahead of the step, so only those of the step itself are taken.
    """

    def __init__(self, clock: Clock, counts: list[int]):
        self.clock, self.counts = clock, counts

    def on_step_end(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
        passes = args.gradient_accumulation_steps
        self.clock.tick(sum(self.counts[:passes]))
        del self.counts[:passes]


def trainer_arguments(plan: Plan, size: int, device: torch.device) -> dict[str, Any]:
    """Return the arguments of all opponents' trainers: micro batches of `size`, bf16 autocast, fused AdamW, no saving."""
    return {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": plan.global_batch_size // size,
        "learning_rate": 3e-4, "bf16": device.type == "cuda", "use_cpu": device.type == "cpu",
        "optim": "adamw_torch_fused", "save_strategy": "no", "logging_strategy": "no", "report_to": "none",
        "dataloader_drop_last": True, "disable_tqdm": True,
    }  # fmt: skip


def by_length() -> dict[str, Any]:
    """Return the arguments for batches of similar lengths, under the names of the installed transformers."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if "train_sampling_strategy" in known:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}


def _hugging_face(plan: Plan, data: list[list[int]], size: int, device: torch.device) -> float:
    """Measure the setup that Hugging Face's documentation advises.

    That is dynamic padding, batches of similar lengths, bf16 autocast, SDPA and fused AdamW.
    """
    base = build_base(plan.shape, device, torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    clock = Clock(plan.warm_up_steps, device)
    counts: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = labels[i, :n] = torch.tensor(row["input_ids"])
            mask[i, :n] = 1
        counts.append(int(mask.sum()))
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            remove_unused_columns=False,
            **trainer_arguments(plan, size, device),
            **by_length(),
        )
        rows = [{"input_ids": ids} for ids in data]
        ticks = Ticks(clock, counts)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[ticks])
        trainer.train()
    return clock.rate()


def _ours(plan: Plan, data: list[list[int]], micro_tokens: int, device: torch.device) -> float:
    """Measure our loop with hardware.padding_free: bf16, fp32 masters, fused layers, loss in chunks, captured steps."""
    dtype = dtype_on(device)
    base = build_base(plan.shape, device, dtype)
    if device.type == "cuda":
        use_fused_layers(base)
    config = MoraConfig(r=8, operator="auto", overflow="drop", target_modules="all-linear", mora_dropout=0.0)
    model: nn.Module = get_peft_model(base, config).train()
    train = Train(global_batch_size=plan.global_batch_size, **TRAIN)  # type: ignore[arg-type]
    engine = TorchEngine(model, train, dtype, cuda_graphs=True)
    samples = [Sample(ids, list(ids)) for ids in data]
    rows = trains_without_padding(model)
    batches = Batches(samples, 0, plan.global_batch_size, 1, 0, micro_batch_tokens=micro_tokens, padding_free=rows)
    clock = Clock(plan.warm_up_steps, device)
    for step in range(len(data) // plan.global_batch_size):
        loss_tokens = batches.loss_tokens(step)
        for batch in batches.micro_batches(step):
            engine.backward(batch, loss_tokens)
        engine.step(3e-4, 1.0)
        clock.tick(sum(len(data[i]) for i in batches.indices(step)))
    return clock.rate()
