"""Single linear layers of LLaMA-2-7B, forward and backward: where the time goes, and how many rows fit into the cache."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from mora.adapter import MoraConfig, MoraLinear, fused_linear

from .models import Case, dtype_on
from .step import milliseconds

LAYERS = {"q": (4096, 4096), "gate": (4096, 11008), "down": (11008, 4096)}
TOKENS = 8192
CHUNKS_MIB = (4, 8, 16, 32, 4096)


def sweep(device: torch.device, smoke: bool) -> None:
    """Print the milliseconds of the frozen layer, then of each method; of rotation, for every size of its row chunks."""
    dtype = dtype_on(device)
    shapes = {"tiny": (64, 172)} if smoke else LAYERS
    tokens, chunks = (64, (4096,)) if smoke else (TOKENS, CHUNKS_MIB)
    for name, (k, d) in shapes.items():
        x = torch.randn(tokens, k, device=device, dtype=dtype, requires_grad=True)
        g = torch.randn(tokens, d, device=device, dtype=dtype)
        base = nn.Linear(k, d, bias=False, device=device, dtype=dtype).requires_grad_(False)
        print(f"{name:6} {'frozen':24} {_time(base, x, g, device):.3f} ms")
        for case in (Case("mora", 8, "sharing"), Case("mora", 256, "sharing"), Case("mora", 8, "rotation")):
            operator, r = case.operator, 2 if smoke else case.r
            layer = MoraLinear(
                base, "default", r, MoraConfig(r=r, operator=operator, overflow="drop", init_weights=False)
            ).to(device)
            layer.mora_M["default"].weight.data = layer.mora_M["default"].weight.data.to(dtype)
            for mib in chunks if operator == "rotation" else chunks[-1:]:
                fused_linear.CHUNK_BYTES = mib * 2**20
                part = f" parts of {mib} MiB" if operator == "rotation" else ""
                print(f"{name:6} {f'{operator} r={r}{part}':24} {_time(layer, x, g, device):.3f} ms", flush=True)


def _time(layer: nn.Module, x: torch.Tensor, g: torch.Tensor, device: torch.device) -> float:
    def step() -> None:
        layer(x).backward(g)
        x.grad = None
        for p in layer.parameters():
            p.grad = None

    for _ in range(5):
        step()
    return statistics.median(milliseconds(step, device) for _ in range(20))
