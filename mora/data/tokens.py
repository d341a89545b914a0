"""Text to token ids, as the beginning of a sequence that goes on. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> list[int]:
    """Return the ids of a text, a BOS of the tokenizer's own included, cut at `max_length`, without an EOS that it appends.

    A tokenizer may append EOS to every text (add_eos_token of many Llamas). Then a prompt alone is no prefix of prompt and
    answer, and one to be continued would end the sequence. EOS is only where the text has it.
    """
    return without_appended_eos(tokenizer, text, list(tokenizer(text)["input_ids"]))[:max_length]


def without_appended_eos(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Return `ids` of `text` without what EOS there is at the end beyond the text's own."""
    eos = tokenizer.eos_token_id
    if not ids or ids[-1] != eos:
        return ids
    surplus = _at_the_end(ids, eos) - _written(text, str(tokenizer.eos_token))
    return ids[: len(ids) - surplus] if surplus > 0 else ids


def _at_the_end(ids: Sequence[int], eos: int) -> int:
    return next((n for n, i in enumerate(reversed(ids)) if i != eos), len(ids))


def _written(text: str, eos: str) -> int:
    """Return how often the text ends with EOS."""
    n = 0
    while text.endswith(eos):
        text, n = text.removesuffix(eos), n + 1
    return n
