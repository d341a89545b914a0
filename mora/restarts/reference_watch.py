"""Refuse a training step that also runs the model without its adapter, as a reference, which every restart would move."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import PeftModel

from .layers import Adapted


class ReferenceWatch:
    """Notes, by a forward pre-hook of every restarted layer, whether one runs without the adapter.

    Attributes:
        seen: The name of a layer that has done so since `seen` was last set to None.
    """

    def __init__(self, model: PeftModel, layers: Sequence[Adapted]):
        self._adapter = layers[0].adapter_name
        self.seen: str | None = None
        self._hooks = [
            model.get_submodule(layer.name).register_forward_pre_hook(partial(self._note, layer.name))
            for layer in layers
        ]

    def _note(self, name: str, layer: Any, args: Any) -> None:
        if layer.disable_adapters or self._adapter not in layer.active_adapters:
            self.seen = name

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def check(self, step: int) -> None:
        """Refuse a training step in which a layer ran without the adapter.

        Raises:
            ValueError: With what to do instead.
        """
        if self.seen is not None:
            self.remove()
            raise ValueError(
                f"RestartCallback: step {step} ran {self.seen} without the adapter {self._adapter!r}, as trainers do that "
                "take their reference from the model with the adapter disabled (DPO, KTO, GRPO with beta > 0, ...), or a "
                "callback within a step; each restart would move that reference. Give the trainer a reference of its own "
                "(ref_model=a second model), let it compute the reference beforehand (precompute_ref_log_probs=True), or do "
                "without one (GRPO: beta=0)"
            )
