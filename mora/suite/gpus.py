"""The GPUs of this machine, and their distribution over runs side by side. No torch, which would hold memory on each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

MIB = 2**20


def visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without an NVIDIA driver."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return [index for (index,) in query("index")]


def memory() -> float | None:
    """Return the bytes of the smallest GPU here; None if there is none."""
    sizes = [float(size) * MIB for (size,) in query("memory.total") if size.replace(".", "").isdigit()]
    return min(sizes) if sizes and visible() else None


def query(*what: str) -> list[list[str]]:
    """Ask nvidia-smi for these values, one row per GPU; no rows without an NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(what)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return [row.split(", ") for row in answer.stdout.splitlines()] if answer.returncode == 0 else []


class GpuSlots:
    """Slots for runs of `ranks` processes each.

    There are `jobs` slots; for runs of several GPUs, which share none, at most as many as there are sets of GPUs. Runs
    of one GPU are spread evenly, and share a GPU if there are more jobs than GPUs.
    """

    def __init__(self, jobs: int, gpus: list[str], ranks: int = 1):
        sets = (
            [gpus[i : i + ranks] for i in range(0, len(gpus) - ranks + 1, ranks)] if ranks > 1 else [[g] for g in gpus]
        )
        self.jobs = min(jobs, max(1, len(sets))) if ranks > 1 and gpus else jobs
        self.on_one_gpu = -(-self.jobs // max(1, len(sets)))
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for i in range(self.jobs):
            self._free.put(",".join(sets[i % len(sets)]) if sets else None)

    @contextmanager
    def take(self, ranks: int) -> Iterator[dict[str, str]]:
        """Yield the environment of a run in a free slot. A run with another number of ranks sees every GPU."""
        gpus = self._free.get()
        try:
            env = {"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None and ranks == gpus.count(",") + 1 else {}
            yield {"MORA_SIDE_BY_SIDE": str(self.on_one_gpu), **env}
        finally:
            self._free.put(gpus)
