"""The tokens that prompt and answer may take together, and what is cut if they are more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

# Fields of configurations with relative positions, which go on beyond what was trained.
UNBOUNDED = ("rope_parameters", "rope_scaling", "rope_theta", "alibi")
PROMPT_TOKENS = 1024  # kept of a prompt if no limit forbids it; MATH's answers alone may have 2,048
DEFAULT_ANSWER = 256  # lm-eval's value for a task that gives none
# lm-eval's names of an answer's length; the first that is given counts.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def positions(model: torch.nn.Module) -> int | None:
    """Return the size of the model's table of positions, which no position may exceed; None for a model without a table."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if config is None or any(getattr(config, name, None) for name in UNBOUNDED):
        return None
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((n for name in names if isinstance(n := getattr(config, name, None), int) and n > 0), None)


def by_answer(requests: list[Any], window: int, length_limit: int | None) -> dict[tuple[int, int], list[int]]:
    """Group lm-eval's generation requests by the tokens of their answers.

    A request's prompt is cut as if it were alone: a task's score does not depend on the tasks that are scored beside it.

    Returns:
        The places of the requests of each group, by the most tokens of an answer and of prompt and answer together. The
        latter are `window`, or more if a prompt would else keep fewer than PROMPT_TOKENS beside the answer. They are at
        most `length_limit`, if that is given: then an answer gets at most half of it, and the prompt, cut at the left, the
        rest.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for place, request in enumerate(requests):
        answer = _answer(request)
        together = max(window, answer + PROMPT_TOKENS)
        if length_limit is not None and together > length_limit:
            answer, together = min(answer, max(1, length_limit // 2)), length_limit
        groups.setdefault((answer, together), []).append(place)
    return groups


def with_answer(request: Any, tokens: int) -> Any:
    """Return a generation request whose answer has at most `tokens` tokens: the same one, if it has."""
    if _answer(request) == tokens:
        return request
    prompt, settings, *rest = request.args
    others = {name: value for name, value in settings.items() if name not in LENGTHS}
    return replace(request, arguments=(prompt, others | {LENGTHS[0]: tokens}, *rest))


def _answer(request: Any) -> int:
    """Return the most tokens of an answer."""
    given = (request.args[1].get(name) for name in LENGTHS)
    return next((int(tokens) for tokens in given if tokens is not None), DEFAULT_ANSWER)
