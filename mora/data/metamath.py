"""MetaMath's text and mask: mathematical reasoning (Tables 1 and 4)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from . import tokens
from .records import Conversation
from .samples import IGNORE, Sample

# The prompts of Stanford Alpaca, which MetaMath trains with.
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def prompt_of(query: str) -> str:
    """Return the Alpaca prompt of a query: its first line is the instruction, further lines are the input."""
    instruction, _, rest = query.partition("\n")
    if rest:
        return PROMPT_WITH_INPUT.format(instruction=instruction, input=rest)
    return PROMPT.format(instruction=instruction)


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Sample:
    """Return prompt, answer right after the colon, and EOS, cut at max_length tokens.

    As many tokens as the prompt has alone carry no loss. All labels may be IGNORE when the prompt fills max_length.
    """
    (_, query), (_, response) = conversation.turns
    prompt = prompt_of(query)
    ids = tokens.encode(tokenizer, f"{prompt}{response}{tokenizer.eos_token}", max_length)
    n_prompt = min(len(tokens.encode(tokenizer, prompt)), len(ids))
    return Sample(ids, [IGNORE] * n_prompt + ids[n_prompt:], n_prompt)
