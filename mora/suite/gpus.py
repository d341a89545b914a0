"""The GPUs of this machine, and which runs use which at the same time. Imports no torch, which would hold memory on each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from mora.errors import ConfigError

MIB = 2**20
MPS = "nvidia-cuda-mps-control"
MPS_S = 90.0  # the time limit of a call, in which torch may have to be imported
PRODUCT = "import torch; a = torch.ones(64, 64, device='cuda'); assert (a @ a).sum() > 0"


@dataclass
class Gpu:
    """A GPU as the driver reports it. `busy`: its utilisation in percent, one sample per look that had one."""

    index: str
    total_gib: float
    used_gib: float = 0.0
    busy: list[float] = field(default_factory=list)


def visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none without an NVIDIA driver."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
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


def read_gpus(wanted: list[str]) -> list[Gpu]:
    """Return those GPUs with known memory that `wanted` names, by index or UUID; if it is empty, those of `visible`.

    There are none without a driver. A GPU whose memory the driver does not tell (`[N/A]`, as when it is lost) is left out.
    """
    wanted, found = wanted or visible(), []
    for index, uuid, *numbers in query("index", "uuid", "memory.total", "memory.used", "utilization.gpu"):
        total, used, busy = map(_number, numbers)
        if _is_named(index, uuid, wanted) and total is not None and used is not None:
            found.append(Gpu(index, total / 1024, used / 1024, [] if busy is None else [busy]))
    return found


def check_named(wanted: list[str]) -> None:
    """Raise ConfigError if one of these is not a GPU that can be used here."""
    for name in wanted:
        if not read_gpus([name]):
            there = ", ".join(gpu.index for gpu in read_gpus([])) or "none"
            raise ConfigError(f"--gpus {name}: no GPU whose memory nvidia-smi shows; there are {there}")


def _is_named(index: str, uuid: str, wanted: list[str]) -> bool:
    return index in wanted or any(name.startswith("GPU-") and uuid.startswith(name) for name in wanted)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@contextmanager
def sharing_at_once(indices: list[str]) -> Iterator[dict[str, str]]:
    """Yield the environment in which runs share a GPU through NVIDIA MPS: they compute at the same time, not in turns.

    MPS is started, tried with a small matrix product on each of these GPUs, and ended when the context ends. Raises
    OSError if it does not work here.
    """
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        env = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        with ExitStack() as stack:
            try:
                _call([MPS, "-d"], folder, env)
                stack.callback(_quietly_end, folder, env)
                for index in indices:
                    _call([sys.executable, "-c", PRODUCT], folder, env | {"CUDA_VISIBLE_DEVICES": index})
            except subprocess.TimeoutExpired as error:
                raise OSError(f"NVIDIA MPS does not work here: {error.cmd[0]} took over {MPS_S:.0f} s") from error
            yield env


def _call(command: list[str], folder: str, env: dict[str, str], given: str | None = None) -> None:
    """Run the command to its end. Its output goes to a file, since MPS's daemon would keep a pipe open.

    CUDA_VISIBLE_DEVICES is not passed on, so that the daemon sees every GPU. If it saw only some, it would number them
    anew, whereas runs name a GPU by its index among all.
    """
    mine = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with open(f"{folder}/said", "w+") as said:
        answer = subprocess.run(
            command, env=mine | env, input=given, stdout=said, stderr=said, text=True, timeout=MPS_S, check=False
        )
        said.seek(0)
        if answer.returncode:
            raise OSError(f"NVIDIA MPS does not work here: {command[0]} failed: {said.read().strip()[-200:]}")


def _quietly_end(folder: str, env: dict[str, str]) -> None:
    with suppress(OSError, subprocess.TimeoutExpired):
        _call([MPS], folder, env, given="quit\n")


class GpuSlots:
    """Slots for runs of `ranks` processes each.

    There are `jobs` slots. Runs on several GPUs share none, so for them there are at most as many slots as sets of GPUs.
    Runs on one GPU are spread evenly, and share a GPU if there are more jobs than GPUs.
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
        """Wait for a free slot and yield its environment. A run with another number of ranks sees every GPU."""
        gpus = self._free.get()
        try:
            env = {"CUDA_VISIBLE_DEVICES": gpus} if gpus is not None and ranks == gpus.count(",") + 1 else {}
            yield {"MORA_SIDE_BY_SIDE": str(self.on_one_gpu), **env}
        finally:
            self._free.put(gpus)
