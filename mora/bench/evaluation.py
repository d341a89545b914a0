"""Scoring one-token options and generating texts: the suite's backend beside lm-eval's own, same model, same requests."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from mora.evaluate.backend import Backend
from mora.evaluate.response_cache import ResponseCache

from .models import SHAPES, build_base, dtype_on

OPTIONS = (" w4", " w5", " w6", " w7")
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
MAX_LENGTH = 2048


@dataclass(frozen=True)
class Plan:
    """Texts of random words of one token each. Like that of questions, their length is log-normal, with median `median`.

    Each of the `questions` has four one-token options, like MMLU's without shots; each of the `prompts` is continued by
    `new_tokens`. Every backend and batch size is timed `rounds` times after a warm-up, or fewer once `patience_s` is over.
    """

    shape: str
    questions: int
    prompts: int
    new_tokens: int
    batch_sizes: tuple[int, ...]
    median: int = 110
    rounds: int = 3
    patience_s: float = 30.0


FULL = Plan("smollm2_135m", 4096, 512, 128, (64, 512))
SMOKE = Plan("tiny", 8, 4, 4, (2, 4), median=12, rounds=1)


def compare(plan: Plan, device: torch.device) -> dict[str, Any]:
    """Return one row per kind of request, backend and batch size."""
    model, tokenizer = endless(plan.shape, device)
    rows = []
    for what, requests, unit in (
        ("options", _questions(plan), plan.questions),
        ("texts", _prompts(plan), plan.prompts * plan.new_tokens),
    ):
        for who, backend in (("lm-eval's HFLM", _lm_evals), ("ours", _ours)):
            for size in plan.batch_sizes:
                ask = _asking(what, backend(model, tokenizer, size), requests)
                rows.append(_row(what, who, size, unit, plan, ask, device))
    data = {name: getattr(plan, name) for name in ("questions", "prompts", "new_tokens", "median")}
    return {"shape": plan.shape, "rows": rows, "data": data}


def endless(shape: str, device: torch.device) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a model with random weights that never ends a text, and a tokenizer of words."""
    model = build_base(shape, device, dtype_on(device)).eval()
    model.config.use_cache = True
    model.lm_head.weight[: len(SPECIAL)] = 0  # some word has a larger logit than 0
    return model, word_tokenizer(SHAPES[shape]["vocab_size"])


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of `size` words w0, w1, ..., the first of which are special."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), size))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    pad, bos, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_max_length=MAX_LENGTH,
    )


def _texts(plan: Plan, count: int) -> list[str]:
    rng = np.random.default_rng(count)
    lengths = np.clip(rng.lognormal(np.log(plan.median), 0.6, count), 4, 1024).astype(int)
    vocabulary = SHAPES[plan.shape]["vocab_size"]
    return [" ".join(f"w{i}" for i in rng.integers(len(SPECIAL), vocabulary, n)) for n in lengths]


def _questions(plan: Plan) -> list[Instance]:
    pairs = [(text, option) for text in _texts(plan, plan.questions) for option in OPTIONS]
    return [Instance("loglikelihood", {}, pair, i % len(OPTIONS)) for i, pair in enumerate(pairs)]


def _prompts(plan: Plan) -> list[Instance]:
    how = {"until": [], "do_sample": False, "max_gen_toks": plan.new_tokens}
    return [Instance("generate_until", {}, (text, dict(how)), 0) for text in _texts(plan, plan.prompts)]


def _lm_evals(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=MAX_LENGTH, softmax_dtype="float32")


def _ours(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, size: int) -> HFLM:
    return Backend(model, tokenizer, size, MAX_LENGTH, ResponseCache(None, ""))


def _asking(what: str, backend: HFLM, requests: list[Instance]) -> Callable[[], Any]:
    ask = backend.loglikelihood if what == "options" else backend.generate_until
    return lambda: ask(requests, disable_tqdm=True)


def _row(
    what: str, who: str, size: int, unit: int, plan: Plan, ask: Callable[[], Any], device: torch.device
) -> dict[str, Any]:
    """Measure the `seconds` of every round, including tokenising. `unit` counts the questions or new tokens of a round."""
    row: dict[str, Any] = {
        "what": what,
        "who": who,
        "batch_size": size,
        "unit": unit,
        "seconds": [],
        "peak_bytes": None,
    }
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        ask()
        while not row["seconds"] or (len(row["seconds"]) < plan.rounds and sum(row["seconds"]) < plan.patience_s):
            started = time.perf_counter()
            ask()  # its answers are on the host, so that nothing is left to wait for
            row["seconds"].append(time.perf_counter() - started)
        row["peak_bytes"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    print(f"  {row}", flush=True)
    return row
