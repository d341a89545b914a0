"""LoRA (Eq. 1): PEFT's own, so that the comparison is with what people use."""

from __future__ import annotations

from peft import LoraConfig

from mora.config.schema import LoraAdapter


def peft_config(adapter: LoraAdapter, r: int, lora_alpha: float) -> LoraConfig:
    return LoraConfig(
        r=r,
        lora_alpha=adapter.lora_alpha or lora_alpha,
        target_modules=list(adapter.target_modules),
        lora_dropout=adapter.dropout,
        task_type="CAUSAL_LM",
    )
