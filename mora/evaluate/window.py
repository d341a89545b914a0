"""The tokens that prompt and answer may take together, and what is cut if they are more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

# Fields of configurations with relative positions, which go on beyond what was trained.
UNBOUNDED = ("rope_parameters", "rope_scaling", "rope_theta", "alibi")
PROMPT_TOKENS = 1024  # kept of a prompt if no limit forbids it; MATH's answers alone may have 2,048
DEFAULT_ANSWER = 256  # lm-eval's value for a task that gives none


def positions(model: torch.nn.Module) -> int | None:
    """Return the size of the model's table of positions, which no position may exceed; None for a model without a table."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if config is None or any(getattr(config, name, None) for name in UNBOUNDED):
        return None
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((n for name in names if isinstance(n := getattr(config, name, None), int) and n > 0), None)


def for_answers(requests: list[Any], window: int, length_limit: int | None) -> tuple[list[Any], int]:
    """Return lm-eval's generation requests, and the tokens that a prompt and its answer may take together.

    That number is `window`, or more if a prompt would else keep fewer than PROMPT_TOKENS beside the longest answer. It is at
    most `length_limit`, if that is given: then an answer gets at most half of it, and the prompt, cut at the left, the rest.
    """
    longest = max((_answer(request) for request in requests), default=0)
    wanted = max(window, longest + PROMPT_TOKENS)
    if length_limit is None or wanted <= length_limit:
        return requests, wanted
    half = max(1, length_limit // 2)
    return [_with_answer(request, min(_answer(request), half)) for request in requests], length_limit


def _answer(request: Any) -> int:
    return request.args[1].get("max_gen_toks", DEFAULT_ANSWER)


def _with_answer(request: Any, tokens: int) -> Any:
    prompt, settings, *rest = request.args
    return replace(request, arguments=(prompt, settings | {"max_gen_toks": tokens}, *rest))
