"""Real optimizer steps beside what the plan predicts for them: peak memory and time, on models with random weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlamaForCausalLM

from mora.config import RunConfig
from mora.data.batches import Batch
from mora.methods import prepare
from mora.models.dtypes import DTYPES
from mora.models.fused import use_fused_layers
from mora.planner import memory, speed
from mora.results import checked, write_sealed
from mora.train.engines import make_engine

from .models import build, twin_of
from .step import milliseconds

WARM_UP = 3  # steps after the first: by then each shape has come for the third time and its graph is captured
TIMED = 4
LR = 1e-4
TOLERANCE = 0.15  # the error of memory and time that the plan promises not to exceed
UNSTEADY = "unsteady: the CPU or another program held the GPU up"


@dataclass(frozen=True)
class Case:
    """A run, given by its overrides, and its step: `micro_batches` of `batch_size` sequences of `length` tokens."""

    name: str
    overrides: tuple[str, ...]
    batch_size: int
    length: int
    micro_batches: int

    def config(self) -> RunConfig:
        return speed.of_equal_passes(self.all_overrides())

    def all_overrides(self) -> list[str]:
        sequences = self.batch_size * self.micro_batches
        return [
            *self.overrides,
            f"hardware.micro_batch_size={self.batch_size}",
            f"task.train.global_batch_size={sequences}",
        ]


def cases(smoke: bool) -> Iterator[Case]:
    """Yield the cases. Small models come first, so that a failure of the large one loses nothing.

    Steps of small models are CUDA graphs, as in runs. Those of the large one are not, but have so many tokens that the GPU
    takes longer for them than the CPU for the launches.
    """
    if smoke:
        for method in ("lora", "mora"):
            for on in (False, True):
                yield _case("tiny", ["task=uuid", "scale=smoke", "hardware=cpu"], method, 4, 4, 32, 2, on)
        return
    lite = ["task=uuid", "scale=lite", "hardware=gpu1"]
    for method, r in (("lora", 8), ("lora", 32), ("mora", 8), ("mora", 32)):
        yield _case("smollm2", lite, method, r, 100, 72, 1)
    for r in (1, 8):
        yield _case("smollm2 rotation", [*lite, "method.adapter.operator=rotation"], "mora", r, 100, 72, 1)
    for size in (100, 50, 25):
        yield _case("smollm2", lite, "fft", None, size, 72, 100 // size)
    memory_study = ["task=uuid", "scale=lite", "model=qwen25_coder_0b5", "hardware=gpu1"]
    for method, r in (("lora", 2), ("mora", 2)):
        yield _case("qwen 0.5B", memory_study, method, r, 100, 80, 1)
    mid = ["task=metamath", "scale=mid", "hardware=gpu1"]
    for method, rank in (("lora", 4), ("mora", 4), ("mora", 96), ("fft", None)):
        yield _case("qwen 1.5B", mid, method, rank, 16, 256, 3)
    pretraining = ["task=c4", "model=llama_250m", "hardware=gpu1"]
    for method, rank in (("fft", None), ("lora", 128), ("mora", 128)):
        for size in (32, 16):
            yield _case("llama_250m", pretraining, method, rank, size, 512, 64 // size)
    large = ["task=metamath", "hardware=gpu1", "hardware.cuda_graphs=false"]
    for on in (False, True):
        for method, r in (("lora", 8), ("mora", 8), ("mora", 256), ("lora", 256)):
            fits = 8 if on or (method, r) != ("lora", 256) else 6
            yield _case("llama2_7b", large, method, r, fits, 1024, 1, on)


def _case(
    model: str,
    base: list[str],
    method: str,
    r: int | None,
    size: int,
    length: int,
    micro_batches: int,
    checkpointing: bool = False,
) -> Case:
    rank = [] if r is None else [f"r={r}"]
    words = [model, method, *rank, f"{micro_batches} x {size} x {length}", "checkpointed" if checkpointing else ""]
    overrides = [*base, f"method={method}", *rank, f"hardware.gradient_checkpointing={str(checkpointing).lower()}"]
    return Case(" ".join(filter(None, words)), tuple(overrides), size, length, micro_batches)


def measure(device: torch.device, path: Path, circumstances: dict[str, Any], smoke: bool, only: str) -> dict[str, Any]:
    """Measure every case whose name contains `only`, and write it to `path` as soon as it is done.

    Cases that the same source has already measured stay. A case that failed is tried again.
    """
    result: dict[str, Any] = {"kind": "plan", "rows": []} | circumstances
    if path.is_file():
        earlier = checked(path, dict, speed.AGAIN)
        if earlier["source"]["fingerprint"] == circumstances["source"]["fingerprint"]:
            result = earlier
    done = {row["name"] for row in result["rows"] if "error" not in row}
    bases: dict[str, LlamaForCausalLM] = {}
    for case in cases(smoke):
        if case.name in done or only not in case.name:
            continue
        row = _measured(case, device, bases)
        print(f"  {_line(row)}", flush=True)
        result["rows"] = [old for old in result["rows"] if old["name"] != case.name] + [row]
        write_sealed(path, result)
    return result


def _measured(case: Case, device: torch.device, bases: dict[str, LlamaForCausalLM]) -> dict[str, Any]:
    config = case.config()
    row: dict[str, Any] = {
        "name": case.name,
        "overrides": case.all_overrides(),
        "batch_size": case.batch_size,
        "length": case.length,
        "micro_batches": case.micro_batches,
        "cuda_graphs": config.hardware.captures_graphs and device.type == "cuda",
    }
    try:
        row |= _steps(case, config, device, bases)
    except torch.OutOfMemoryError:
        row["error"] = "out of memory"
    except RuntimeError as error:  # from CUDA: the next case may still run, and what was measured is written
        row["error"] = str(error).splitlines()[0]
    gc.collect()
    if device.type == "cuda":
        torch._C._cuda_clearCublasWorkspaces()  # of this case's streams, or they count for later cases
        torch.cuda.empty_cache()
    return row


def _steps(case: Case, config: RunConfig, device: torch.device, bases: dict[str, LlamaForCausalLM]) -> dict[str, Any]:
    """Take steps with the engine that a run would have, on random tokens."""
    step = Step(case, config, device, bases)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step.warm_up()
    capturing = torch.cuda.max_memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = [milliseconds(step, device) / 1e3 for _ in range(TIMED)]
    replaying = torch.cuda.max_memory_allocated() + _idle_in_graphs() if on_gpu else 0
    return {
        "fused": step.fused,
        "step_s": seconds,
        "peak_bytes": max(capturing, replaying) if on_gpu else None,
        "replaying_bytes": replaying if on_gpu else None,
        "reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
    }


class Step:
    """A step of a case with the engine that a run would have, on random tokens. Call it after `warm_up`.

    `bases` has the model of the previous case by its name; it is replaced by this case's if that is another.
    """

    def __init__(self, case: Case, config: RunConfig, device: torch.device, bases: dict[str, LlamaForCausalLM]) -> None:
        dtype = DTYPES[config.scale.precision]
        if config.model.name not in bases:
            bases.clear()  # so that one model is in memory at a time
            gc.collect()
            bases[config.model.name] = build(_architecture(config, case.length), device, dtype)
        model: nn.Module = twin_of(bases[config.model.name])
        self.fused = device.type == "cuda" and use_fused_layers(model)  # type: ignore[arg-type]
        with torch.device(device):
            model = prepare(model, config).train()
        _no_zeros(model)
        self._engine = make_engine(model, config)
        self._loss_tokens = case.micro_batches * case.batch_size * (case.length - 1)
        generator = torch.Generator().manual_seed(0)
        self._batches = []
        for _ in range(case.micro_batches):
            ids = torch.randint(3, _vocabulary(config), (case.batch_size, case.length), generator=generator)
            self._batches.append(Batch(ids, ids.clone()).to(device))

    def __call__(self) -> None:
        self._take(self._batches)

    def warm_up(self) -> None:
        """Make the moments, then capture the graphs. After a resume it is the same, and no more can be in memory at once."""
        self._take(self._batches[:1])
        for _ in range(WARM_UP):
            self._take(self._batches)

    def _take(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._engine.backward(batch, self._loss_tokens)
        self._engine.step(LR, 1.0)


def _idle_in_graphs() -> int:
    """Return the bytes that graphs' pools keep for replays, beyond what tensors hold. Nothing else can use them."""
    segments = torch.cuda.memory_snapshot()
    return sum(s["total_size"] - s["allocated_size"] for s in segments if tuple(s["segment_pool_id"]) != (0, 0))


def _architecture(config: RunConfig, length: int) -> dict[str, Any]:
    shape = config.model.architecture or config.model.shape or {}
    return {"max_position_embeddings": max(length, 1024)} | shape


def _vocabulary(config: RunConfig) -> int:
    return int(_architecture(config, 0)["vocab_size"])


@torch.no_grad()
def _no_zeros(model: nn.Module) -> None:
    """Replace parameters that are all zero, since products with them may run faster than with real values."""
    for p in model.parameters():
        if p.requires_grad and not p.any():
            p.normal_(std=0.01)


class Prediction(NamedTuple):
    """The plan's prediction for a case: peak bytes, seconds per step by the speed of other cases, and the speed's source."""

    peak_bytes: float
    step_s: float | None
    source: str


def predict(row: dict[str, Any]) -> Prediction:
    """Predict a case from its description and the other cases alone. If none like it was measured, there are no seconds."""
    config = speed.of_equal_passes(row["overrides"])
    needs = memory.memory(config, row["length"], row["batch_size"], fused=row["fused"])
    peak = needs.gpu - needs.graphs  # all passes have one shape
    time = speed.token_time(config, row["length"], row["batch_size"], without=row["name"])
    tokens = row["micro_batches"] * row["batch_size"] * row["length"]
    return Prediction(peak, time.seconds_per_token * tokens if time.measured else None, time.source)


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:44} {row['error']}"
    peak = f"{row['peak_bytes'] / 2**30:6.2f} GiB" if row["peak_bytes"] else ""
    steady = "" if speed.is_steady(row["step_s"]) else f"  {UNSTEADY}"
    shortest, longest = (f(row["step_s"]) * 1e3 for f in (min, max))
    return f"{row['name']:44} {shortest:8.1f} to {longest:.1f} ms a step  {peak}{steady}"
