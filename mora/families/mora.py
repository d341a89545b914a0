"""MoRA (Eq. 2): our PEFT tuner."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mora.choices import Groups, OperatorChoice, Overflow, Pad, Pairs, Rounding, Split
from mora.sizes import aligned, auto_operator, wanted_and_clamped_r_hat

from .base import Family, Footprint, Size, Targets

if TYPE_CHECKING:
    from peft import PeftModel

    from mora.adapter import MoraConfig
    from mora.restarts.layers import Adapted


class Mora(Family):
    """MoRA: options of `mora.adapter.config.MoraConfig`. Read by `mora/families/mora.py`."""

    has_known_cost: ClassVar[bool] = True

    kind: Literal["mora"]
    """This kind of adapter."""
    target_modules: Targets
    """Names of the modules that carry adapters, or all-linear."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Dropout probability of the adapter's input: `mora_dropout` of MoraConfig."""
    operator: OperatorChoice
    """How inputs are compressed and outputs decompressed: Eq. 4, 6, 8 or 9. auto: rotation if a group would hold more than
    8 inputs, else sharing."""
    groups: Groups
    """Which inputs, and which outputs, the operator sharing ties together (Appendix B)."""
    split: Split
    """What becomes of contiguous groups of unequal size."""
    pad: Pad
    """What fills the last block or group: the first inputs again, or zeros."""
    pairs: Pairs
    """Which planes rotation turns: j and j + r_hat / 2, or 2j and 2j + 1."""
    overflow: Overflow
    """Whether decouple and rotation ignore blocks of inputs beyond the last output, or add them to the first ones."""
    rhat_rounding: Rounding
    """How r_hat becomes an integer: down, or to the nearest."""

    def search_spaces(self, name: str) -> list[str]:
        return ["mora_rotation", name] if self.operator == "rotation" else [name]

    def operator_for(self, hidden_size: int, r: int) -> str:
        return auto_operator(hidden_size, r, self.rhat_rounding) if self.operator == "auto" else self.operator

    def footprint(self, in_features: int, out_features: int, r: int, hidden_size: int, number_bytes: int) -> Footprint:
        """Return the cost as the base class says.

        MoRA keeps what M acts on, f_comp(x) with folded blocks added up, or x if that is no larger or if its blocks are
        multiplied without a copy; its dropout is drawn again in backward (mora/adapter/fused_linear.py).
        """
        k, d = in_features, out_features
        operator = self.operator_for(hidden_size, r)
        _, r_hat = wanted_and_clamped_r_hat(k, d, r, operator, self.rhat_rounding)
        blocks = 1
        if in_blocks := operator in ("decouple", "rotation"):
            inputs, outputs = math.ceil(k / r_hat), math.ceil(d / r_hat)
            blocks = min(inputs, outputs)  # those that M acts on: what is folded is added before
        compressed = blocks * aligned(r_hat)
        in_place = blocks > 1 and not self.dropout and k == d == compressed == blocks * r_hat
        keeps_x = in_place or compressed >= k
        drops = operator == "truncation" or (in_blocks and self.overflow == "drop")
        ignored = max(k - blocks * r_hat, 0) if drops else 0
        return Footprint(r_hat**2, blocks * r_hat**2, 0 if keeps_x else compressed, keeps_x, ignored=ignored)

    def check_restarts(self, method: str, groups: list[str] | None) -> None:
        if groups and groups[0] != self.groups:
            raise ValueError(f"method.restart.groups={groups}: expected [{self.groups}, ...]")

    def peft_config(self, size: Size) -> MoraConfig:
        from mora.adapter import MoraConfig

        assert size.r is not None
        return MoraConfig(
            r=size.r,
            target_modules=size.target_modules,
            rank_pattern=size.rank_pattern,
            mora_dropout=self.dropout,
            task_type="CAUSAL_LM",
            **self.model_dump(exclude={"kind", "target_modules", "dropout"}),
        )

    def restarted_layers(self, model: PeftModel) -> list[Adapted]:
        from .tools.restarting import restarted_layers

        return restarted_layers(model)
