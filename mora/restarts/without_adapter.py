"""Trainers that also use the model without its adapter, as a reference: every restart would move that reference."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from .layers import Adapted


class WithoutAdapter:
    """Notes whether the model runs without its adapter, in one layer that stands for all: a forward pre-hook of it.

    Attributes:
        seen: whether it did since this was last set to False.
    """

    def __init__(self, model: PeftModel, layer: Adapted):
        self._layer, self._adapter = layer.name, layer.adapter_name
        self.seen = False
        self._handle = model.get_submodule(layer.name).register_forward_pre_hook(self)

    def __call__(self, layer: Any, args: Any) -> None:
        if layer.disable_adapters or self._adapter not in layer.active_adapters:
            self.seen = True

    def remove(self) -> None:
        self._handle.remove()

    def check(self, step: int) -> None:
        """Refuse a training step in which it did.

        Raises:
            ValueError: With what to do instead.
        """
        if self.seen:
            self.remove()
            raise ValueError(
                f"RestartCallback: step {step} ran {self._layer} without the adapter {self._adapter!r}, as trainers do that "
                "take their reference from the model with the adapter disabled (DPO, KTO, GRPO with beta > 0, ...); each "
                "restart would move that reference. Give the trainer a reference of its own (ref_model=a second model), let "
                "it compute the reference beforehand (precompute_ref_log_probs=True), or do without one (GRPO: beta=0)"
            )
