"""LoRA (Eq. 1) and its kin: PEFT's own, so that the comparison is with what people use."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Generator, Tensor

from mora.config.schema import LoraAdapter
from mora.errors import ConfigError
from mora.restarts.layers import kaiming_a


def peft_config(
    adapter: LoraAdapter, r: int, lora_alpha: float, target_modules: list[str] | str, rank_pattern: dict[str, int]
) -> LoraConfig:
    """`rank_pattern`: kind of module -> a rank of its own, with the alpha / r of all others."""
    alpha = adapter.lora_alpha or lora_alpha
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=target_modules,
        rank_pattern=rank_pattern,
        alpha_pattern={name: alpha * own / r for name, own in rank_pattern.items()},
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def set_up(model: PeftModel, adapter: LoraAdapter, seed: int) -> None:
    """What PEFT has no option for: AsyLoRA's first A, and an A that stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name in layer.active_adapters:
                weight = layer.lora_A[name].weight
                if adapter.init != "kaiming":
                    weight.copy_(first_a(weight.shape, generator, adapter.init))
                weight.requires_grad_(not adapter.freeze_a)


def first_a(shape: tuple[int, ...], generator: Generator, init: str) -> Tensor:
    """A of LoRA before training, shape (r, in_features), fp32 on the CPU.

    "kaiming": uniform in +-1/sqrt(in_features), as PEFT; "orthonormal": orthonormal rows, from the QR decomposition of a
    Gaussian matrix (A_rand of arXiv:2402.16842).
    """
    if init == "kaiming":
        return kaiming_a(shape, generator)
    r, in_features = shape
    if r > in_features:
        raise ConfigError(f"r={r}: {r} orthonormal rows do not fit into in_features={in_features}; lower r")
    return torch.linalg.qr(torch.randn(in_features, r, generator=generator))[0].T
