"""Small models and helpers that the tests of the adapter share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mora import MoraConfig
from mora.adapter import MoraLinear


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_mlp() -> Callable[..., nn.Sequential]:
    """A fresh MLP 20 -> 32 -> 32 -> 6 with modules "0", "2" and "4", always with the same weights."""

    def make(dtype: torch.dtype = torch.float32) -> nn.Sequential:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layers = [nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 6)]
            return nn.Sequential(*layers).to(dtype)

    return make


@pytest.fixture
def make_llama() -> Callable[[], LlamaForCausalLM]:
    """A fresh Llama with grouped-query attention (k and v are 64 -> 32), always with the same weights."""

    def make() -> LlamaForCausalLM:
        config = LlamaConfig(
            vocab_size=48,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.125,
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(48, (2, 9))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 20)


@pytest.fixture
def adapt() -> Callable[..., PeftModel]:
    """get_peft_model with a random M, so that the adapter does something, on all of the MLP's hidden modules."""

    def make(model: nn.Module, **options) -> PeftModel:
        settings = {"r": 2, "target_modules": ["0", "2"], "operator": "sharing", "init_weights": False} | options
        return get_peft_model(model, MoraConfig(**settings))

    return make


@pytest.fixture
def mora_layers() -> Callable[[nn.Module], dict[str, MoraLinear]]:
    def find(model: nn.Module) -> dict[str, MoraLinear]:
        modules = model.named_modules()
        return {n.removeprefix("base_model.model."): m for n, m in modules if isinstance(m, MoraLinear)}

    return find


@pytest.fixture
def two(make_mlp, adapt):
    """An MLP with the adapters "default" (active) and "second", of different operators and sizes."""
    model = adapt(make_mlp())
    second = MoraConfig(
        r=3,
        rank_pattern={"4": 1},
        target_modules=["2", "4"],
        operator="rotation",
        overflow="fold",
        init_weights=False,
    )
    model.add_adapter("second", second)
    return model
