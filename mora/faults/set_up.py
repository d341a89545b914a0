"""Fuzzed configurations that are well formed: whatever is wrong with them is said before the first step is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from mora.config import compose
from mora.config.schema import RunConfig
from mora.data import load as load_data
from mora.errors import MoraError
from mora.methods import prepare
from mora.models.load import load_model
from mora.models.tokenizers import pad_id
from mora.train.engines import make_engine
from mora.train.scoring import Scoring
from mora.train.worker import check_positions, make_batches, with_samples

from .command_lines import METHODS, keys_of, names
from .inputs import Refused

SMALL = [
    "1",
    "2",
    "3",
    "5",
    "7",
    "8",
    "31",
    "64",
    "100",
    "1e-30",
    "1e-6",
    "0.5",
    "0.99",
    "3.0",
    "null",
    "true",
    "false",
]
WORDS = [
    "q_proj",
    "[q_proj]",
    "[nothing]",
    "[lm_head]",
    "[embed_tokens]",
    "['']",
    "[]",
    "all-linear",
    "{}",
    "{k_proj: 1}",
]
NAMES = [
    "auto",
    "decouple",
    "rotation",
    "truncation",
    "contiguous",
    "padded",
    "zeros",
    "official",
    "isolated",
    "constant",
]
TASKS = ("uuid", "metamath", "tulu2", "c4")
PARTS = ("method.", "model.architecture", "model.ranks", "model.rank_caps", "model.target", "model.tie", "model.init")
MORE = (
    "task.train",
    "task.data",
    "task.evaluation",
    "hardware.micro",
    "hardware.gradient",
    "scale.precision",
    "r",
    "seed",
)


@st.composite
def configurations(draw: Any) -> tuple[list[str], list[str]]:
    """Draw the overrides of a tiny run, and those of them that may be wrong."""
    task, method = draw(st.sampled_from(TASKS)), draw(st.sampled_from(METHODS))
    keys = [key for key in keys_of(task, method) if key.startswith((*PARTS, *MORE))]
    values = st.sampled_from([*SMALL, *SMALL, *WORDS, *NAMES])
    odd = [f"{key}={draw(values)}" for key in draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2))]
    rank = [] if method in ("none", "fft") else ["r=4"]
    return [f"task={task}", f"method={method}", "scale=smoke", "hardware=cpu", *rank, *odd], odd


def ask(scratch: Path, line: tuple[list[str], list[str]]) -> None:
    """All that a worker does before it trains, and one step. Raises: Refused."""
    try:
        config = compose(line[0])
        _set_up(config, scratch)
    except MoraError as error:
        raise Refused(str(error), [*names(line[1]), "task.train.global_batch_size"]) from error


def _set_up(config: RunConfig, scratch: Path) -> None:
    """As mora.train.worker does."""
    model, tokenizer = load_model(config.model, config.scale.precision)
    data = load_data(config, tokenizer)
    if config.method.trains:
        config = with_samples(config, len(data.samples))
    check_positions(model, data.samples)
    pad = pad_id(tokenizer)
    Scoring(config, data, tokenizer, pad, scratch).check()
    batches = make_batches(config, model, data.samples, pad)
    engine = make_engine(prepare(model, config), config)
    if config.method.trains:
        engine.model.train()
        tokens = batches.loss_tokens(0)
        torch.stack([engine.backward(micro, tokens) for micro in batches.micro_batches(0)]).sum()
