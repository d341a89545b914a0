"""The text and the loss mask of MetaMath, for mathematical reasoning (Tables 1 and 4)."""

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
    """Return the Alpaca prompt of a query. Its first line is the instruction, and further lines are the input."""
    instruction, _, rest = query.partition("\n")
    if rest:
        return PROMPT_WITH_INPUT.format(instruction=instruction, input=rest)
    return PROMPT.format(instruction=instruction)


def encode(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Sample:
    """Return the prompt, the answer right after its colon, and EOS, cut at max_length tokens.

    The first n tokens carry no loss, where n is the number of tokens of the prompt alone. If the prompt fills max_length,
    all labels are IGNORE.
    """
    (_, query), (_, response) = conversation.turns
    prompt = prompt_of(query)
    ids = tokens.encode(tokenizer, f"{prompt}{response}{tokenizer.eos_token}", max_length)
    n_prompt = min(len(tokens.encode(tokenizer, prompt)), len(ids))
    return Sample(ids, [IGNORE] * n_prompt + ids[n_prompt:], n_prompt)
