"""The text and the loss mask of Tulu v2, for instruction tuning (Table 1, MMLU)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from . import tokens as token_ids
from .records import Conversation
from .samples import IGNORE, Sample


def text_of(turns: list[tuple[str, str]], eos: str) -> str:
    """Return the text. `<|role|>` stands on a line of its own before each turn; an assistant's turn ends with EOS."""
    return "".join(f"<|{role}|>\n{content.strip()}{eos if role == 'assistant' else ''}\n" for role, content in turns)


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Sample:
    """Return the conversation, cut at max_length tokens, with the loss on what follows `<|assistant|>` and its line break.

    Spans are found by tokenising what comes before them, as in open-instruct's finetune.py. If the cut comes before the
    first answer, all labels are IGNORE. The authors also replace ids of 32,000 and more by 0. LLaMA-2's own tokenizer never
    gives such ids, and we do not do this.
    """
    turns, eos = conversation.turns, str(tokenizer.eos_token)

    def tokens(text: str) -> list[int]:
        return token_ids.encode(tokenizer, text, max_length)

    ids = tokens(text_of(turns, eos).strip())
    labels = list(ids)
    for i, (role, _) in enumerate(turns):
        if role == "assistant":
            continue
        begin = len(tokens(text_of(turns[:i], eos))) if i else 0
        before = text_of(turns[: i + 1], eos)
        if i + 1 < len(turns) and turns[i + 1][0] == "assistant":
            before += "<|assistant|>\n"
        end = min(len(tokens(before)), len(ids))
        labels[begin:end] = [IGNORE] * len(labels[begin:end])
        if end >= max_length:
            break
    return Sample(ids, labels)
