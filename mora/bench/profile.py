"""Where the GPU's time goes in a training step: kernel by kernel, for the cases of `plan`."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity
from transformers import LlamaForCausalLM

from .plan import Case, cases, warmed_up

FAMILIES = {  # the first that a kernel's name fits
    "MoRA's maps": r"gather_sum",
    "attention": r"flash|fmha|sdpa|attention",
    "matrix products": r"gemm|gemv|nvjet|cutlass|cublas|splitk|::mm|addmm|bmm",
    "norms, rotary embedding, gates": r"rms_norm|rope|swiglu|silu",
    "loss": r"cross_entropy|softmax|nll_loss",
    "optimizer": r"multi_tensor_apply|adam|foreach",
}
REST = "copies, sums, dropout and other elementwise operations"
SHOWN = 15  # kernels, the slowest


def show(device: torch.device, smoke: bool, only: str) -> None:
    """Print for each case whose name holds `only` the time of every family of kernels and of the slowest kernels."""
    bases: dict[str, LlamaForCausalLM] = {}
    for case in cases(smoke):
        if only in case.name:
            print(_table(case, _kernels(case, device, bases)), flush=True)


def _kernels(case: Case, device: torch.device, bases: dict[str, LlamaForCausalLM]) -> dict[str, tuple[float, int]]:
    """Return milliseconds and launches of a step by kernel; on a CPU of torch's operations."""
    on_gpu = device.type == "cuda"
    step, _ = warmed_up(case, case.config(), device, bases)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    return {
        event.key: ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
        for event in profiler.key_averages()
    }


def _table(case: Case, kernels: dict[str, tuple[float, int]]) -> str:
    families: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for name, cost in kernels.items():
        families[family_of(name)].append(cost)
    totals = {name: (sum(ms for ms, _ in costs), sum(n for _, n in costs)) for name, costs in families.items()}
    slowest = sorted(kernels.items(), key=lambda item: -item[1][0])[:SHOWN]
    lines = [f"{case.name}: {sum(ms for ms, _ in kernels.values()):.1f} ms in {len(kernels)} kernels"]
    for name, (ms, launches) in [*sorted(totals.items(), key=lambda item: -item[1][0]), *slowest]:
        lines.append(f"  {ms:9.2f} ms  {launches:6} x  {name:.110}")
    return "\n".join(lines)


def family_of(kernel: str) -> str:
    return next((name for name, pattern in FAMILIES.items() if re.search(pattern, kernel, re.IGNORECASE)), REST)
