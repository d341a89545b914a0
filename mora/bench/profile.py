"""Where the GPU's time goes in a training step, kernel by kernel, for the cases of `mora.bench.plan`."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity
from transformers import LlamaForCausalLM

from .plan import Case, Step, cases

FAMILIES = {  # a kernel belongs to the first family that its name fits
    "MoRA's maps": r"gather_sum",
    "attention": r"flash|fmha|sdpa|attention",
    "matrix products": r"gemm|gemv|nvjet|cutlass|cublas|splitk|::mm|addmm|bmm",
    "norms, rotary embedding, gates": r"rms_norm|rope|swiglu|silu",
    "loss": r"cross_entropy|softmax|nll_loss",
    "optimizer": r"multi_tensor_apply|adam|foreach",
}
REST = "copies, sums, dropout and other elementwise operations"
SHOWN = 15  # the number of slowest kernels that are shown


def show(device: torch.device, smoke: bool, only: str) -> None:
    """Print, for each case whose name contains `only`, the time of every family of kernels and of the slowest kernels."""
    bases: dict[str, LlamaForCausalLM] = {}
    for case in cases(smoke):
        if only in case.name:
            print(table(case.name, _kernels(case, device, bases)), flush=True)


def _kernels(case: Case, device: torch.device, bases: dict[str, LlamaForCausalLM]) -> dict[str, tuple[float, int]]:
    """Return, by kernel, the milliseconds and launches of a step; on a CPU, by operation of torch."""
    on_gpu = device.type == "cuda"
    step = Step(case, case.config(), device, bases)
    step.warm_up()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    times = {
        event.key: ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
        for event in profiler.key_averages()
    }
    return {name: cost for name, cost in times.items() if cost[0] > 0}  # a launch itself takes no GPU time


def table(name: str, kernels: dict[str, tuple[float, int]]) -> str:
    """Return the case's name with its total time, one line per family, and one line per kernel for the slowest.

    kernels: name -> (milliseconds, launches).
    """
    families: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for kernel, cost in kernels.items():
        families[family_of(kernel)].append(cost)
    totals = {family: (sum(ms for ms, _ in costs), sum(n for _, n in costs)) for family, costs in families.items()}
    slowest = sorted(kernels.items(), key=lambda item: -item[1][0])[:SHOWN]
    lines = [f"{name}: {sum(ms for ms, _ in kernels.values()):.1f} ms in {len(kernels)} kernels"]
    for what, (ms, launches) in [*sorted(totals.items(), key=lambda item: -item[1][0]), *slowest]:
        lines.append(f"  {ms:9.2f} ms  {launches:6} x  {what:.110}")
    return "\n".join(lines)


def family_of(kernel: str) -> str:
    """Return the family of a kernel by its name."""
    return next((name for name, pattern in FAMILIES.items() if re.search(pattern, kernel, re.IGNORECASE)), REST)
