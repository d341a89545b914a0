"""UUID pairs to memorise, which are the data of Table 2 and Figures 2 and 3 (sections 3 and 5.1)."""

from __future__ import annotations

import hashlib
import random
import uuid

from transformers import PreTrainedTokenizerBase

from mora.config.data_schema import UuidData
from mora.data import tokens
from mora.data.samples import IGNORE, Sample

Pair = tuple[str, str]


def make_pairs(data: UuidData) -> list[Pair]:
    """Make `data.pairs` pairs (key, value) of version-4 UUIDs, as a pure function of `data.seed`.

    The first n pairs are the same whatever `data.pairs` is.
    """
    rng = random.Random(data.seed)

    def draw() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    return [(draw(), draw()) for _ in range(data.pairs)]


def fingerprint(pairs: list[Pair]) -> str:
    """Return 16 hex digits over the pairs, in order."""
    return hashlib.sha256("\n".join(f"{k}:{v}" for k, v in pairs).encode()).hexdigest()[:16]


def encode(pair: Pair, tokenizer: PreTrainedTokenizerBase, loss_on: str) -> Sample:
    """Return `key:value` without EOS (official). loss_on "all" puts the loss on every token, "value" only on the value's.

    It begins with the tokens of `key:` alone, as a prompt does. If the tokenizer would merge the colon with the value, the
    two are encoded separately.
    """
    key, value = pair
    prompt = tokens.encode(tokenizer, f"{key}:")
    ids = tokens.encode(tokenizer, f"{key}:{value}")
    if ids[: len(prompt)] != prompt:
        ids = prompt + list(tokenizer(value, add_special_tokens=False)["input_ids"])
    labels = ids if loss_on == "all" else [IGNORE] * len(prompt) + ids[len(prompt) :]
    return Sample(ids, labels, n_prompt=len(prompt))
