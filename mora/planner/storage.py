"""What a run writes to the disk: its checkpoints, and the adapter or model that it leaves. Needs no torch and no weights."""

from __future__ import annotations

from dataclasses import dataclass

from mora.config import RunConfig
from mora.models.shapes import shape_of

from .counts import frozen_adapter, number_bytes, shadow_bytes, trainable


@dataclass(frozen=True)
class Storage:
    """Bytes of one checkpoint, and of what is left once the run has ended and its checkpoints are removed."""

    checkpoint: int
    left: int

    def least(self, several_checkpoints: bool) -> int:
        """Return the bytes without which the run cannot end, where a new checkpoint is written beside the one before."""
        return self.checkpoint + max(self.left, self.checkpoint if several_checkpoints else 0)


def storage(config: RunConfig) -> Storage:
    """Return what the run writes. Raises UnknownShape if the model's shape is not known without its weights."""
    if not config.method.trains:
        return Storage(0, 0)
    masters_and_moments = 12 * trainable(config)  # in fp32: one master weight and AdamW's two moments of each
    return Storage(checkpoint=masters_and_moments + shadow_bytes(config), left=_left(config))


def _left(config: RunConfig) -> int:
    """Return the bytes of adapter and whole model: what trained is in fp32, merged layers are rounded."""
    if not config.hardware.save_model:
        return 0
    shape, trained = shape_of(config.model), trainable(config)
    if config.method.adapter is None:
        return 4 * trained
    rest = shape.rest if config.trains_rest else 0
    adapter = 4 * (trained - rest + frozen_adapter(config))
    if config.method.restart is None and not config.trains_rest:
        return adapter
    return adapter + number_bytes(config) * (shape.parameters - rest) + 4 * rest
