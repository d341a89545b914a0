"""lm-eval, in process, on a model in memory, with the task files beside this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

TASKS = Path(__file__).parent / "tasks"


def run_task(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    metadata: dict[str, Any],
    batch_size: int,
    max_length: int = 2048,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of one task as lm-eval writes them, `name` and `name_stderr`, and its samples.

    `metadata` reaches the task's data loader. The caller's random state is left as it was.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    was_training = model.training
    model.eval()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        lm = HFLM(
            pretrained=model,  # type: ignore[arg-type]
            tokenizer=tokenizer,  # type: ignore[arg-type]
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype="float32",
        )
        result = simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata),
            bootstrap_iters=0,
            log_samples=True,
            random_seed=None,  # type: ignore[arg-type]
            numpy_random_seed=None,  # type: ignore[arg-type]
            torch_random_seed=None,  # type: ignore[arg-type]
            fewshot_random_seed=None,  # type: ignore[arg-type]
        )
    model.train(was_training)
    metrics = {k.removesuffix(",none"): v for k, v in result["results"][task].items() if isinstance(v, float)}
    return metrics, result["samples"][task]
