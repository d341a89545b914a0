"""Keeps GPUs busy with a list of runs until they are done or the time is over; started again, here or elsewhere, it goes on.

python scripts/run_queue.py QUEUE --minutes 25
python scripts/run_queue.py QUEUE --minutes 25 --out DIR    # journal, and copies of results, documents, spectra

QUEUE has one run per line, as arguments of run.py: `task=c4 method=lora r=128 lr=2e-3 seed=1 scale=lite`. Empty lines and
what follows a # are passed over. Earlier lines go first. The file is read again whenever a run may start, so lines can be
added while the queue runs. A line may begin with `[30 GiB]`, the memory that it claims. `@wait` on a line of its own ends
the part that may start until everything above it has ended. `@experiment table1 mid task=metamath method=lora,mora` stands
for all runs of these cells that are missing: searches, then what they choose, as they come. Its words that begin with
`hardware.`, which change no result, are given to every one of these runs, as is a claim before it.

A run starts on the GPU with the most room, where the memory that a like run with passes of its size has held (the least of
their results, and 10%) fits beside what already runs there, and where the driver reports it as free; a run like no other
claims what the plan says of its training, or what scoring holds if that is more, or --unknown-gib. The first line that fits
on no GPU yet keeps the one with the most room for itself; later lines may start on the others. A run that fails is tried
once more with twice the claim.
A run that could not end in the time left is not started; where none is left that could, the queue ends. The times are those
of like runs and of the plan's measured steps on such a GPU, of which every run that needs it has an equal part.
With --mps the runs of a GPU compute at the same time, through NVIDIA MPS, instead of in turns; where that does not work, the
queue says so and goes on without. A fatal fault of one run on the GPU then ends the others there, too, and killing
one can make them hang, fail or compute wrong numbers: do not kill runs by hand (docs/airgapped.md).
A minute before the time is over every run is asked to save a checkpoint (MORA_OUTPUT_DIR) and ends; one that has trained and
is being scored has that minute.

DIR/journal.jsonl has one line per event; `wrong`: what could not be read or written, which ends no queue. The last one sums
up: GPU minutes held, in runs that ended, in runs that did not ("wasted", until another machine takes up their
checkpoints), how busy the driver saw the GPUs, and the runs that are left or failed twice; with either, the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mora.config import ConfigError, RunConfig, run_id
from mora.config.arguments import amount, output_folder, positive_int
from mora.config.run_id import documents_path, log_path, result_path, spectrum_path
from mora.config.source import ROOT
from mora.errors import MoraError, one_line
from mora.results import read
from mora.suite import gpus, queue_file
from mora.suite.gpus import Gpu, read_gpus
from mora.suite.launch import run_folder
from mora.suite.like_runs import LikeRuns
from mora.suite.progress import last_row
from mora.suite.queue_file import QueuedRun
from mora.suite.usable import done

POLL_S = 2.0
SAVING_S = 60.0  # how long a run may take to save its checkpoint
LAST_S = 10.0  # the time before the end at which a run that is still being scored is stopped, too
SETTLING_S = 25.0  # the time after its start in which a run may not yet hold all of its memory


@dataclass
class Job:
    config: RunConfig
    claim_gib: float
    process: subprocess.Popen[bytes]
    gpu: Gpu
    started: float
    needs_s: float  # how long the run would still need the GPU if it had it to itself
    log_before: int | None  # when an earlier run's log, which tells nothing of this one, was last written
    asked: bool = False

    def ask_to_stop(self) -> None:
        """Ask the run to stop, but only once: a run that is asked again would not finish saving."""
        if not self.asked:
            self.process.terminate()
        self.asked = True


def main() -> int:
    options = _options()
    try:
        queue_file.read(options.queue)
        options.out.mkdir(parents=True, exist_ok=True)
        queue = Queue(options)
    except (MoraError, OSError) as error:
        sys.exit(f"run_queue.py: {one_line(error)}")
    signal.signal(signal.SIGTERM, lambda *_: queue.stop("asked to stop"))
    signal.signal(signal.SIGINT, lambda *_: queue.stop("asked to stop"))
    with ExitStack() as stack:
        if options.mps:
            try:
                queue.env = stack.enter_context(gpus.sharing_at_once([gpu.index for gpu in queue.gpus]))
            except OSError as error:
                queue.complain(error)
        return queue.run()


class Queue:
    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.ends = time.monotonic() + 60 * options.minutes - SAVING_S
        self.began = time.monotonic()
        gpus.check_named(options.gpus)
        self.gpus = read_gpus(options.gpus)
        if not self.gpus:
            raise ConfigError(
                "nvidia-smi shows no GPU that CUDA_VISIBLE_DEVICES names; the queue is for GPUs, run.py runs anywhere"
            )
        self.like_runs = LikeRuns(ROOT / "results" / "runs", gpu_name(self.gpus[0].index))
        self.env: dict[str, str] = {}  # set for every run
        self.running: list[Job] = []
        self.tries: dict[str, int] = {}
        self.ended: dict[str, str] = {}  # run id -> how it ended
        self.spent_s = {"ended": 0.0, "not ended": 0.0}
        self.stopping = False
        self._said: set[str] = set()
        self._read_at: tuple[tuple[int, int, int], list[QueuedRun | None]] = ((0, 0, 0), [])

    def run(self) -> int:
        self.note(event="queue", gpus=[gpu.index for gpu in self.gpus], minutes=self.options.minutes)
        while True:
            self._collect()
            if not self.stopping and time.monotonic() >= self.ends:
                self.stop("the time is over", [job for job in self.running if not _is_trained(job)])
            if self.stopping and time.monotonic() >= self.ends + SAVING_S - LAST_S:
                self.stop("the time is over")
            if not self.stopping:
                self._start()
            if not self.running and (self.stopping or all(self._too_long(run.config) for run in self._waiting())):
                break
            time.sleep(POLL_S)
            self._look()
        held_s = (time.monotonic() - self.began) * len(self.gpus)
        samples = [busy for gpu in self.gpus for busy in gpu.busy]
        left = [run_id(run.config) for run in self._waiting()]
        failed = [name for name, how in self.ended.items() if how == "failed"]
        self.note(
            event="sum", held_gpu_min=round(held_s / 60, 2), left=left, failed=failed,
            busy_percent=round(statistics.fmean(samples), 1) if samples else None,
            run_min={how: round(seconds / 60, 2) for how, seconds in self.spent_s.items()},
            ended=sum(how == "done" for how in self.ended.values()),
        )  # fmt: skip
        return 1 if left or failed else 0

    def _look(self) -> None:
        """Ask the driver how full and how busy the GPUs are, and the logs how far the runs are.

        A GPU that the driver does not report now keeps its last numbers.
        """
        seen = {gpu.index: gpu for gpu in read_gpus([gpu.index for gpu in self.gpus])}
        for mine in self.gpus:
            if gpu := seen.get(mine.index):
                mine.used_gib = gpu.used_gib
                mine.busy += gpu.busy
        for job in self.running:
            job.needs_s = self._still_needs_s(job)

    def stop(self, why: str, jobs: list[Job] | None = None) -> None:
        """Ask these runs (None: all) to save a checkpoint and end, and start no more runs."""
        jobs = self.running if jobs is None else jobs
        if not self.stopping:
            self.note(event="stopping", why=why, running=[run_id(job.config) for job in jobs])
        self.stopping = True
        for job in jobs:
            job.ask_to_stop()

    def note(self, **event: Any) -> None:
        line = json.dumps({"at": round(time.monotonic() - self.began, 1), **event})
        print(line, flush=True)
        try:
            with open(self.options.out / "journal.jsonl", "a") as file:
                file.write(line + "\n")
        except OSError as error:  # runs go on, and are looked after, without a journal
            print(f"run_queue.py: the journal is not written: {error}", file=sys.stderr, flush=True)

    def complain(self, error: Exception) -> None:
        """Report, once, an error that does not end the queue."""
        if (text := one_line(error)) not in self._said:
            self._said.add(text)
            self.note(event="wrong", what=text)

    def _waiting(self) -> list[QueuedRun]:
        """Return the runs that may start now: not done, running or given up, and above the first @wait that still waits.

        A result that does not count, as it is of changed source, is no end: run.py sets it aside and does the run again.
        """
        taken = {run_id(job.config) for job in self.running}
        open_: list[QueuedRun] = []
        before = False
        for run in self._runs():
            if run is None:
                if before:
                    break
                continue
            name = run_id(run.config)
            if name in taken:
                before = True
            elif name not in self.ended and not self._is_done(run.config):
                before = True
                taken.add(name)  # a second line of the same run
                open_.append(run)
        return open_

    def _is_done(self, config: RunConfig) -> bool:
        try:
            return done(config)
        except MoraError as error:  # a damaged result, which run.py refuses
            self.complain(error)
            self.ended[run_id(config)] = "failed"
            return True

    def _runs(self) -> list[QueuedRun | None]:
        """Return the lines of the file, read again if it has changed or a run has ended. While it is wrong, the old stay."""
        try:
            state = (self.options.queue.stat().st_mtime_ns, len(self.ended), sum(self.tries.values()))
            if state != self._read_at[0]:
                self._read_at = (state, queue_file.read(self.options.queue))
        except (MoraError, OSError) as error:
            self.complain(error)
        return self._read_at[1]

    def _start(self) -> None:
        kept: Gpu | None = None
        for run in self._waiting():
            free = [gpu for gpu in self.gpus if gpu is not kept]
            if not free or len(self.running) >= self.options.jobs * len(self.gpus):
                return
            gpu = max(free, key=self._room)
            if self._too_long(run.config, [job.needs_s for job in self.running if job.gpu is gpu]):
                continue
            claim = run.claim_gib or self.like_runs.claim_gib(run.config, self.options.unknown_gib)
            claim *= 2 ** self.tries.get(run_id(run.config), 0)
            if self._room(gpu) < min(claim, 0.9 * gpu.total_gib):
                kept = kept or gpu  # or a large run might never start
                continue
            try:
                self._launch(run, gpu, claim)
            except OSError as error:  # such as a full disk; the next look tries again
                return self.complain(error)

    def _too_long(self, config: RunConfig, beside_s: Sequence[float] = ()) -> bool:
        """Return whether the run could not end in the time left beside runs that still need the GPU so long."""
        expected = self.like_runs.expected_s(config, beside_s)
        return expected is not None and time.monotonic() + expected > self.ends + SAVING_S

    def _still_needs_s(self, job: Job) -> float:
        """Return the seconds for which a run that has the GPU to itself would still train or, once it has, be scored.

        It is infinite if the run's steps were never timed.
        """
        if _is_trained(job):
            return self.like_runs.scored_s(job.config)
        whole_s = self.like_runs.training_s(job.config)
        return math.inf if whole_s is None else whole_s * (1 - _steps_done(job) / max(1, job.config.last_step))

    def _room(self, gpu: Gpu) -> float:
        """Return the GiB that are neither claimed nor in use. Runs that have just started count with their whole claim."""
        jobs = [job for job in self.running if job.gpu is gpu]
        if len(jobs) >= self.options.jobs:
            return -1.0
        claimed = sum(job.claim_gib for job in jobs)
        settling = sum(job.claim_gib for job in jobs if time.monotonic() - job.started < SETTLING_S)
        return 0.97 * gpu.total_gib - max(claimed, gpu.used_gib + settling)

    def _launch(self, run: QueuedRun, gpu: Gpu, claim: float) -> None:
        config = run.config
        before = _log_written(config)
        output = open(self.options.out / f"{run_id(config)}.txt", "ab")  # noqa: SIM115 - the process keeps it
        # MORA_SIDE_BY_SIDE is the most runs that may come to share the GPU: a run that others join was not alone on it.
        beside = 1 + sum(job.gpu is gpu for job in self.running)
        env = {**os.environ, **self.env, "CUDA_VISIBLE_DEVICES": gpu.index}
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's; by CUDA's own, GPU 0 is the fastest
        env["MORA_SIDE_BY_SIDE"] = str(self.options.jobs)
        env.setdefault("OMP_NUM_THREADS", "2")
        command = [sys.executable, str(ROOT / "run.py"), *shlex.split(run.arguments)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=env)
        output.close()
        job = Job(config, claim, process, gpu, time.monotonic(), math.inf, before)
        job.needs_s = self._still_needs_s(job)
        self.running.append(job)
        self.note(event="start", run=run_id(config), gpu=gpu.index, claim_gib=round(claim, 1), beside=beside)

    def _collect(self) -> None:
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            name, seconds, code = run_id(job.config), time.monotonic() - job.started, job.process.returncode
            result = result_path(job.config)
            made = code == 0 and result.is_file()
            self.spent_s["ended" if made else "not ended"] += seconds
            self.note(event="end", run=name, code=code, wall_s=round(seconds, 1), gpu=job.gpu.index)
            if made:
                self.ended[name] = "done"
                try:
                    self._keep(job.config)
                except (MoraError, OSError) as error:
                    self.complain(error)
            elif not self.stopping:
                self.tries[name] = self.tries.get(name, 0) + 1
                if self.tries[name] > 1:
                    self.ended[name] = "failed"

    def _keep(self, config: RunConfig) -> None:
        """Record the memory and time that the run took, and copy its result to DIR. Raises DamagedFileError or OSError."""
        result = result_path(config)
        self.like_runs.add(read(result))
        for path in (result, log_path(config), spectrum_path(config), documents_path(config)):
            if path.is_file():
                kept = self.options.out / path.parent.name  # runs, spectra, documents: their files have equal names
                kept.mkdir(exist_ok=True)
                shutil.copy(path, kept)


def _is_trained(job: Job) -> bool:
    """Return whether the run has taken its last step. That step has a checkpoint, so only the scores are missing."""
    return job.config.knows_steps and _steps_done(job) == job.config.last_step


def _steps_done(job: Job) -> int:
    """Return the step of the last row that the run has logged; 0 before its first."""
    try:
        return 0 if _log_written(job.config) == job.log_before else int(last_row(job.config).get("step", 0))
    except (MoraError, OSError):  # a log that cannot be read must not end the queue
        return 0


def _log_written(config: RunConfig) -> int | None:
    """Return when the run's log was last written, in ns; None if there is none."""
    path = run_folder(config) / "log.jsonl"
    return path.stat().st_mtime_ns if path.is_file() else None


def gpu_name(index: str) -> str:
    return next((name for other, name in gpus.query("index", "name") if other == index), "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path, help="a file with one run per line")
    parser.add_argument("--minutes", type=amount, default=60.0, help="how long the queue may run, saving included")
    out = ROOT / "outputs" / "queue"
    parser.add_argument("--out", type=output_folder, default=out, help="journal, output and results")
    parser.add_argument(
        "--gpus",
        type=lambda text: [name.strip() for name in text.split(",")],
        default=[],
        help="indices, 0,1; else all visible ones",
    )
    parser.add_argument("--jobs", type=positive_int, default=6, help="at most so many runs side by side on one GPU")
    parser.add_argument("--mps", action="store_true", help="runs compute on a GPU at the same time, through NVIDIA MPS")
    parser.add_argument("--unknown-gib", type=amount, default=24.0, help="claimed by a run like no other")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
