"""MoRA (Eq. 2): our PEFT tuner."""

from __future__ import annotations

from mora.adapter import MoraConfig
from mora.config.schema import MoraAdapter


def peft_config(
    adapter: MoraAdapter, r: int, target_modules: list[str] | str, rank_pattern: dict[str, int]
) -> MoraConfig:
    """`rank_pattern`: kind of module -> a rank of its own."""
    options = adapter.model_dump(exclude={"kind", "target_modules", "dropout"})
    return MoraConfig(
        r=r,
        target_modules=target_modules,
        rank_pattern=rank_pattern,
        mora_dropout=adapter.dropout,
        task_type="CAUSAL_LM",
        **options,
    )
