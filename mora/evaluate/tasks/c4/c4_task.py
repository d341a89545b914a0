"""Perplexity of packed text, as ReLoRA's pretraining code measures it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import datasets

from mora.data import packing
from mora.data.encoders import MAP_BATCH
from mora.data.sets import SETS
from mora.errors import DataError
from mora.evaluate.backend import TOKEN_IDS
from mora.evaluate.choices import as_test_split
from mora.evaluate.records import rows, text

BLOCK = 512  # paper: section 5.3


def load(
    tokenizer: Any = None, data_dir: str | None = None, tokens: int = 10_000_000, block: int = BLOCK, **_: Any
) -> dict[str, datasets.Dataset]:
    """Load blocks of C4's validation split: a folder's `c4/validation.jsonl.zst` (or .jsonl), or the hub, streamed."""
    records = rows(SETS["c4"], data_dir, streaming=True)
    return as_test_split(blocks((text(record, "text", empty=True) for record in records), tokenizer, tokens, block))


def load_local(
    tokenizer: Any = None, data_dir: str | None = None, tokens: int = 10_000_000, block: int = BLOCK, **_: Any
) -> dict[str, datasets.Dataset]:
    """Load blocks of `pretrain_text/validation.jsonl.zst`."""
    records = rows(SETS["pretrain_text"], data_dir)
    return as_test_split(blocks((text(record, "text", empty=True) for record in records), tokenizer, tokens, block))


def blocks(texts: Iterable[str], tokenizer: Any, tokens: int, length: int = BLOCK) -> list[dict[str, str]]:
    """Return blocks made as in training: `context` is a block's first id, `target` the others.

    Both are lists of ids, since decoding and encoding would change them.

    Raises:
        DataError: There is no tokenizer, it has no EOS, or not one block is filled.
    """
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise DataError(
            "packed text needs a tokenizer with an EOS token: run the task through `python -m mora.evaluate`"
        )
    docs: list[dict[str, str]] = []
    source = iter(texts)
    while together := list(islice(source, MAP_BATCH)):
        encoded = tokenizer(together, add_special_tokens=False)["input_ids"]
        for block in packing.blocks(([*ids, tokenizer.eos_token_id] for ids in encoded), length):
            if len(docs) * length >= tokens:
                return docs
            first, *rest = map(str, block.input_ids)
            docs.append({"context": TOKEN_IDS + first, "target": " " + " ".join(rest)})
    if not docs:
        raise DataError(f"the text is shorter than one block of {length} tokens")
    return docs


def score(doc: dict[str, str], results: list[tuple[float, bool]]) -> dict[str, Any]:
    nats, _ = results[0]
    n_tokens = len(doc["target"].split())
    return {"score": (float(nats), n_tokens), "nats_per_token": -nats / n_tokens}
