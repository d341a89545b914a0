"""What GPUs there are, and which of them each of several runs side by side gets. No torch: it would hold memory on each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

MIB = 2**20


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no NVIDIA driver."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    return [index for (index,) in query("index")]


def memory() -> float | None:
    """Bytes of the smallest GPU here; None where there is none."""
    sizes = [float(size) * MIB for (size,) in query("memory.total") if size.replace(".", "").isdigit()]
    return min(sizes) if sizes and visible() else None


def query(*what: str) -> list[list[str]]:
    """These values of nvidia-smi, a row a GPU; none where there is no NVIDIA driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(what)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return [row.split(", ") for row in answer.stdout.splitlines()] if answer.returncode == 0 else []


class GpuSlots:
    """Slots for runs of `ranks` processes each: `jobs` of them, but no more than there are sets of GPUs where a run takes
    several, since runs of several GPUs share none. Runs of one GPU are spread evenly, several on one where `jobs` says so.
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
        """The environment of a run in one of the slots. A run of other ranks than they are for sees every GPU."""
        gpus = self._free.get()
        try:
            own = {"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None and ranks == gpus.count(",") + 1 else {}
            yield {"MORA_SIDE_BY_SIDE": str(self.on_one_gpu), **own}
        finally:
            self._free.put(gpus)
