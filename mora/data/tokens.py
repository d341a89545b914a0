"""From text to token ids that begin a sequence which may go on. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> list[int]:
    """Return the ids of a text, cut at `max_length`: with the BOS that the tokenizer adds, without an EOS that it appends.

    A tokenizer may append EOS to every text (add_eos_token of many Llamas). Then the ids of a prompt are no prefix of those
    of prompt and answer, and a prompt to be continued would end the sequence. Here EOS is only where the text has it.
    """
    return without_appended_eos(tokenizer, text, list(tokenizer(text)["input_ids"]))[:max_length]


def without_appended_eos(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """Return `ids` of `text`, without those EOS at the end that are not in the text."""
    eos = tokenizer.eos_token_id
    if not ids or ids[-1] != eos:
        return ids
    surplus = _at_the_end(ids, eos) - _written(text, str(tokenizer.eos_token))
    return ids[: len(ids) - surplus] if surplus > 0 else ids


def _at_the_end(ids: Sequence[int], eos: int) -> int:
    return next((n for n, i in enumerate(reversed(ids)) if i != eos), len(ids))


def _written(text: str, eos: str) -> int:
    """Return the number of EOS at the end of the text."""
    n = 0
    while text.endswith(eos):
        text, n = text.removesuffix(eos), n + 1
    return n
