"""LoRA (Eq. 1), DoRA, LoRA+ and AsyLoRA, as PEFT implements them, so that the comparison is with what people use."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from mora.errors import ConfigError

from .base import Family, Footprint, Size, Targets

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Generator, Tensor

    from mora.restarts.layers import Adapted


class Lora(Family):
    """LoRA, DoRA, LoRA+ and AsyLoRA, by PEFT: W + alpha / r B A. Read by `mora/families/lora.py`."""

    has_known_cost: ClassVar[bool] = True

    kind: Literal["lora"]
    """This kind of adapter."""
    target_modules: Targets
    """Names of the modules that carry adapters, or all-linear."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout probability of the adapter's input."""
    lora_alpha: PositiveFloat | None
    """Scales the update, by alpha / r; null: max(16, R / 2) at the rank R that r stands for, with the ratio kept."""
    init: Literal["kaiming", "orthonormal"]
    """First values of A. B starts at zero."""
    freeze_a: bool
    """Train B alone."""
    lr_ratio: PositiveFloat
    """Learning rate of B and of one-dimensional parameters over that of A (LoRA+)."""
    dora: bool
    """Train the norm of each row of the weight as well (DoRA)."""

    @property
    def step_family(self) -> str:
        return "dora" if self.dora else "lora"

    @property
    def remarks(self) -> list[str]:
        return [f"ratio={self.lr_ratio:g}"] if self.lr_ratio != 1 else []

    def footprint(self, in_features: int, out_features: int, r: int, hidden_size: int, number_bytes: int) -> Footprint:
        """Return the cost as the base class says. Under dropout LoRA keeps a masked copy of its input and a byte mask."""
        k, d = in_features, out_features
        frozen = r * k if self.freeze_a else 0
        parameters = r * (k + d) + (d if self.dora else 0) - frozen
        needs_x = not self.freeze_a
        masked = needs_x * k + k / number_bytes if self.dropout else 0
        saved = masked + r + (2 * d if self.dora else 0)
        return Footprint(parameters, r * (k + d), saved, needs_x and not self.dropout, frozen)

    def check_restarts(self, method: str, groups: list[str] | None) -> None:
        if self.dora:
            super().check_restarts(method, groups)
        if self.freeze_a:
            raise ValueError(
                "method.adapter.freeze_a=true: a restart draws A anew, and a frozen one is in no checkpoint"
            )
        if groups:
            raise ValueError(f"method.restart.groups={groups}: expected null, LoRA has no groups")

    def peft_config(self, size: Size) -> LoraConfig:
        """Return a LoraConfig in which modules with a rank of their own have the same alpha / r as all others."""
        from peft import LoraConfig

        alpha = self.lora_alpha or size.lora_alpha
        assert size.r is not None
        assert alpha is not None
        return LoraConfig(
            r=size.r,
            lora_alpha=alpha,  # type: ignore[arg-type]
            target_modules=size.target_modules,
            rank_pattern=size.rank_pattern,
            alpha_pattern={name: alpha * own / size.r for name, own in size.rank_pattern.items()},
            lora_dropout=self.dropout,
            use_dora=self.dora,
            task_type="CAUSAL_LM",
        )

    def after_wrapping(self, model: PeftModel, seed: int) -> None:
        """Draw AsyLoRA's first A, and freeze A if the settings say so."""
        import torch
        from peft.tuners.lora import LoraLayer

        generator = torch.Generator().manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for name in layer.active_adapters:
                    weight = layer.lora_A[name].weight
                    if self.init != "kaiming":
                        with torch.no_grad():
                            weight.copy_(init_lora_a(weight.shape, generator, self.init))
                    weight.requires_grad_(not self.freeze_a)

    def lr_scale(self, name: str, dimensions: int) -> float:
        """Return `lr_ratio` for B and one-dimensional parameters, else 1: PEFT's grouping of LoRA+ (arXiv:2402.12354)."""
        return self.lr_ratio if "lora_B" in name or dimensions == 1 else 1.0

    def restarted_layers(self, model: PeftModel) -> list[Adapted]:
        from .tools.restarting import restarted_layers

        return restarted_layers(model, partial(init_lora_a, init=self.init))


def init_lora_a(shape: tuple[int, ...], generator: Generator, init: str) -> Tensor:
    """Return A of LoRA before training, shape (r, in_features), fp32 on the CPU.

    Args:
        shape: (r, in_features).
        generator: everything is drawn with it.
        init: "kaiming", uniform in +-1/sqrt(in_features), as PEFT; "orthonormal", orthonormal rows, from the QR
            decomposition of a Gaussian matrix (A_rand of arXiv:2402.16842).

    Raises:
        ConfigError: r is larger than in_features, so that so many rows cannot be orthonormal.
    """
    import torch

    from mora.restarts.layers import kaiming_a

    if init == "kaiming":
        return kaiming_a(shape, generator)
    r, in_features = shape
    if r > in_features:
        raise ConfigError(f"r={r}: {r} orthonormal rows do not fit into in_features={in_features}; lower r")
    return torch.linalg.qr(torch.randn(in_features, r, generator=generator))[0].T
