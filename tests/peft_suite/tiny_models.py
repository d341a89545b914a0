"""The tiny models that PEFT's tests fetch from the Hub, made here with random weights, as a cache of the Hub holds them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    T5Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM, AutoModelForSeq2SeqLM

REVISION = "0" * 40
WIDTH, INNER, HEADS, LAYERS, VOCABULARY = 32, 64, 4, 2, 1024
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
}  # fmt: skip
GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCABULARY, "n_positions": 128}
LLAMA = SIZES | {"intermediate_size": INNER}
# Not 1 and 2, which tests use: the embedding of a padding token is zero.
IDS = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 0}


def configs() -> dict[str, PreTrainedConfig]:
    """Return the configuration of each model by the name that PEFT's tests give it. Sizes are those of tiny models."""
    t5 = T5Config(
        d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=LAYERS, num_heads=HEADS, vocab_size=VOCABULARY,
        decoder_start_token_id=0,
    )  # fmt: skip
    llama = LlamaConfig(**LLAMA, num_key_value_heads=HEADS, **IDS)
    return {
        "peft-internal-testing/tiny-random-OPTForCausalLM": OPTConfig(
            **SIZES, ffn_dim=INNER, word_embed_proj_dim=WIDTH, **IDS
        ),
        "peft-internal-testing/opt-125m": OPTConfig(  # as many layers as the real one
            **SIZES | {"num_hidden_layers": 12}, ffn_dim=INNER, word_embed_proj_dim=WIDTH, **IDS
        ),
        "peft-internal-testing/tiny-random-GPT2LMHeadModel": GPT2Config(**GPT, **IDS),
        "hf-internal-testing/tiny-random-gpt2": GPT2Config(**GPT, **IDS),
        "peft-internal-testing/tiny-random-GPTJForCausalLM": GPTJConfig(**GPT, rotary_dim=4, **IDS),
        "trl-internal-testing/tiny-random-LlamaForCausalLM": llama,
        "peft-internal-testing/tiny-random-LlamaForCausalLM": llama,
        "peft-internal-testing/tiny-dummy-qwen2": Qwen2Config(**LLAMA, num_key_value_heads=2, **IDS),
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM": Gemma3TextConfig(
            **LLAMA, num_key_value_heads=2, head_dim=8, **IDS
        ),
        "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": GPTNeoXConfig(**LLAMA, **IDS),
        "peft-internal-testing/tiny-random-BloomForCausalLM": BloomConfig(
            hidden_size=WIDTH, n_layer=5, n_head=HEADS, vocab_size=VOCABULARY, **IDS
        ),
        "peft-internal-testing/tiny-random-t5": t5,
        "google/flan-t5-small": t5,
    }  # fmt: skip


def write() -> list[str]:
    """Write the models that the cache lacks, and return the names of all. Raises RuntimeError if the cache is the user's."""
    if "HF_HUB_CACHE" not in os.environ:
        raise RuntimeError("HF_HUB_CACHE must name a folder for models with random weights, which have real names")
    names, cache = configs(), Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "tiny_models.lock"):  # tests may run in several processes
        for name, config in names.items():
            folder = cache / f"models--{name.replace('/', '--')}"
            if not (folder / "refs" / "main").is_file():
                torch.manual_seed(0)
                family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
                family.from_config(config).save_pretrained(folder / "snapshots" / REVISION)
                (folder / "refs").mkdir(exist_ok=True)
                (folder / "refs" / "main").write_text(REVISION)
    return list(names)
