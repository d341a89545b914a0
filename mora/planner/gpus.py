"""GPUs that a plan knows: how much memory, and how fast beside the H100 that everything was measured on. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mora.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU. `memory`: bytes, as torch reports them; `flops`: peak of dense bf16 per second, by NVIDIA's data sheet."""

    name: str
    memory: float
    flops: float

    @property
    def speed(self) -> float:
        """Its speed over an H100's, by the peaks alone, since nothing was measured on it."""
        return self.flops / H100.flops


H100 = Gpu("h100", 79.1 * GIB, 989e12)
KNOWN = {
    gpu.name: gpu
    for gpu in (
        H100,
        Gpu("a100-40", 39.4 * GIB, 312e12),
        Gpu("a100-80", 79.1 * GIB, 312e12),
        Gpu("h200", 139.8 * GIB, 989e12),
        Gpu("b200", 178.4 * GIB, 2250e12),
        Gpu("rtx4090", 23.5 * GIB, 165e12),
    )
}


def gpu(text: str) -> Gpu:
    """Return the GPU of that name, or one given as GIB,TFLOPS: `48,362`. Raises ConfigError."""
    if text.lower() in KNOWN:
        return KNOWN[text.lower()]
    by_hand = re.fullmatch(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", text)
    if by_hand is None or not all(float(value) > 0 for value in by_hand.groups()):
        raise ConfigError(
            f"--gpu {text}: expected {', '.join(KNOWN)}, or memory in GiB and bf16 TFLOP/s, for example 48,362"
        )
    return Gpu(f"{by_hand[1]} GiB, {by_hand[2]} TFLOP/s", float(by_hand[1]) * GIB, float(by_hand[2]) * 1e12)
