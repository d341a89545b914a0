"""The learning rate after a restart."""

from __future__ import annotations

from typing import Protocol


class RestartTiming(Protocol):
    """A restart every `every_steps` updates; the rate then climbs for `warmup_steps`, if those are not 0."""

    @property
    def every_steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...


def jagged(base: float, step: int, timing: RestartTiming) -> float:
    """Return base * min(1, (step mod R) / w) after the first restart, base before it (ReLoRA, section 3)."""
    if step < timing.every_steps or not timing.warmup_steps:
        return base
    return base * min(1.0, (step % timing.every_steps) / timing.warmup_steps)
