"""Which GPU each of several runs side by side gets. No torch: it would hold memory on every one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where there is no NVIDIA driver."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


class Places:
    """`jobs` places for runs, spread evenly over the GPUs."""

    def __init__(self, jobs: int, gpus: list[str]):
        self.jobs, self.on_one_gpu = jobs, -(-jobs // max(1, len(gpus)))
        self._free: SimpleQueue[str | None] = SimpleQueue()
        for i in range(jobs):
            self._free.put(gpus[i % len(gpus)] if gpus else None)

    @contextmanager
    def take(self, ranks: int) -> Iterator[dict[str, str]]:
        """The environment of a run in one of the places. A run of several ranks sees every GPU."""
        gpu = self._free.get()
        try:
            alone = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None and ranks == 1 else {}
            yield {"MORA_SIDE_BY_SIDE": str(self.on_one_gpu), **alone}
        finally:
            self._free.put(gpu)
