"""Unsloth's LoRA as an opponent of the whole loop, in its own process, since importing it changes torch and transformers.

`compare` starts that process, which must import `unsloth` before anything else. The rest of this module runs there. Nothing
needs a network: a folder with random weights stands for the model.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .evaluation import word_tokenizer
from .loop import PLANS, Clock, Plan, Ticks, by_length, samples, trainer_arguments
from .models import SHAPES, build_base, dtype_on

PROGRAM = "import unsloth\nfrom mora.bench import unsloth_lora\nunsloth_lora.main()"
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATIENCE_S = 300.0
LAST_WORDS = 2000  # the characters that are kept of a failed process's output


def compare(extent: str, device: torch.device) -> list[dict[str, Any]]:
    """Return one row per micro batch of the plan, including those that failed; one row if Unsloth is not installed."""
    plan = PLANS[extent]
    if find_spec("unsloth") is None:
        return [{"who": "Unsloth, LoRA r=8", "micro_batch": "", "error": "not installed"}]
    who, rows = f"Unsloth {version('unsloth')}, LoRA r=8", []
    with tempfile.TemporaryDirectory() as folder:
        _save_base(plan, Path(folder) / "base", device)
        for i, (size, padding_free) in enumerate(plan.unsloth_micro_batches):
            micro_batch = f"{size}, {'no padding' if padding_free else 'near lengths'}"
            rows.append({"who": who, "micro_batch": micro_batch} | _run(extent, i, Path(folder)))
            print(f"  {rows[-1]}", flush=True)
    return rows


def _save_base(plan: Plan, folder: Path, device: torch.device) -> None:
    base = build_base(plan.shape, device, dtype_on(device))
    base.config.use_cache = True
    base.save_pretrained(folder)
    word_tokenizer(SHAPES[plan.shape]["vocab_size"]).save_pretrained(folder)
    del base
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _run(extent: str, index: int, folder: Path) -> dict[str, Any]:
    answer = folder / f"{index}.json"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(folder / "compiled"),
    }
    command = [sys.executable, "-c", PROGRAM, extent, str(index), str(folder / "base"), str(answer)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {PATIENCE_S:.0f} s"}
    if answer.is_file():
        result: dict[str, Any] = json.loads(answer.read_text())
        return result
    print(done.stderr[-LAST_WORDS:], file=sys.stderr)
    return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}


# --- in its own process ----------------------------------------------------------------------------------------------


def main() -> None:
    extent, index, folder, answer = sys.argv[1:]
    plan = PLANS[extent]
    try:
        result = _train(plan, *plan.unsloth_micro_batches[int(index)], folder)
    except torch.OutOfMemoryError:
        result = {"error": "out of memory"}
    Path(answer).write_text(json.dumps(result))


def _train(plan: Plan, size: int, padding_free: bool, folder: str) -> dict[str, Any]:
    """Measure Unsloth's fused kernels without gradient checkpointing, on micro batches of `size` samples.

    Unsloth compiles the model's blocks, so a whole epoch is the warm-up, and the second epoch is timed.
    padding_free: whether the samples are laid end to end; else they have similar lengths and are padded to the longest.
    """
    import datasets
    import trl
    import unsloth

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        folder, max_seq_length=1024, dtype=dtype_on(device), load_in_4bit=False, use_gradient_checkpointing=False
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model, r=8, lora_alpha=16, lora_dropout=0, bias="none", target_modules=LAYERS, use_gradient_checkpointing=False
    )
    clock = Clock(plan.samples // plan.global_batch_size, device)
    counts: list[int] = []

    with tempfile.TemporaryDirectory() as outputs:
        arguments = trl.SFTConfig(
            output_dir=outputs,
            num_train_epochs=2,
            max_length=1024,
            padding_free=padding_free,
            **trainer_arguments(plan, size, device),
            **({} if padding_free else by_length()),
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"input_ids": samples(plan)}),
            processing_class=tokenizer,
            callbacks=[Ticks(clock, counts)],
        )
        _count_tokens(trainer.data_collator, counts, padding_free)
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"tokens_per_s": clock.rate(), "peak_bytes": peak}


def _count_tokens(collator: Any, counts: list[int], padding_free: bool) -> None:
    """Append the number of real tokens of each batch to `counts`. The collator keeps its class, which its trainer checks.

    With padding_free, a padded batch raises ValueError, since it would not be the setting that the row names.
    """

    class Counting(type(collator)):  # type: ignore[misc]
        def __call__(self, rows: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
            batch = super().__call__(rows, *args, **kwargs)
            counts.append(sum(len(row["input_ids"]) for row in rows))
            if padding_free and batch["input_ids"].numel() != counts[-1]:
                raise ValueError(f"input_ids {tuple(batch['input_ids'].shape)} for {counts[-1]} tokens: it is padded")
            return batch

    collator.__class__ = Counting
