"""MoRA (Eq. 2): our PEFT tuner."""

from __future__ import annotations

from mora.adapter import MoraConfig
from mora.config.schema import MoraAdapter


def peft_config(adapter: MoraAdapter, r: int) -> MoraConfig:
    options = adapter.model_dump(exclude={"kind", "target_modules", "dropout"})
    return MoraConfig(
        r=r,
        target_modules=list(adapter.target_modules),
        mora_dropout=adapter.dropout,
        task_type="CAUSAL_LM",
        **options,
    )
