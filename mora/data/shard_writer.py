"""Encode rows in pieces, on all cores. Each piece is written once, so that a stopped preparation can resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from . import manifest
from .records import Record
from .report import Report
from .samples import Sample, StoredSamples, write_shard
from .sources import Rows

PIECES_A_PROCESS = 4  # at least: it takes several seconds to start a process, and one or two to encode a piece


@dataclass
class Encoded:
    """The samples of a piece of rows. `families` has each sample's family (Conversation.family) if the recipe needs it."""

    samples: list[Sample] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    families: list[int] = field(default_factory=list)


class Encoder(Protocol):
    """Encodes rows of one format as samples. It is sent to other processes, so it must be picklable."""

    def __call__(self, rows: list[Record], format: str, /) -> Encoded: ...


@dataclass(frozen=True)
class EncodedShards:
    """The finished pieces of a stream of rows, in order."""

    shards: list[Path]
    report: Report

    @property
    def samples(self) -> StoredSamples:
        """Return the samples of all pieces. They are read when they are needed."""
        return StoredSamples(self.shards)


@dataclass(frozen=True)
class Made:
    """The shards of a data set.

    `left_out` are the samples of the training shards that no run trains on, since they or others of their family are held
    out.
    """

    training: list[Path]
    report: Report
    validation: list[Path] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)


class ShardWriter:
    """Encodes streams of rows into `folder`, in `workers` processes; if that is 1, in this process."""

    def __init__(self, folder: Path, vocabulary: int, workers: int | None = None):
        self.folder, self.vocabulary = folder, vocabulary
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
        self.workers = workers or allowed or 1

    def encode(
        self,
        name: str,
        rows: list[Rows],
        encoder: Encoder,
        rows_per_piece: int = 1000,
        stop_when: Callable[[Report], bool] = lambda _: False,
    ) -> EncodedShards:
        """Encode the rows as pieces `folder/<name>-00000`, ... until `stop_when` is true for the pieces so far.

        Pieces of an earlier attempt are used as they are. A piece never has rows of two sources.

        Raises:
            DataError: A row is wrong; the error names the first.
        """
        shards: list[Path] = []
        report = Report()
        with tqdm(desc=name, unit=" documents", disable=None) as progress:
            for shard in self._in_order(self._jobs(name, rows, rows_per_piece), encoder):
                made = Report.from_dict(json.loads((shard / "report.json").read_text()))
                report += made
                shards.append(shard)
                progress.update(sum(made.documents.values()) + sum(made.dropped.values()))
                if stop_when(report):
                    break
        return EncodedShards(shards, report)

    def write(self, name: str, samples: Iterable[Sample], per_shard: int = 10_000) -> list[Path]:
        """Write samples that were made from finished pieces as shards. The pieces may then be removed."""
        shards = []
        source = iter(samples)
        while chunk := list(islice(source, per_shard)):
            shard = self.folder / f"{name}-{len(shards):05d}"
            shutil.rmtree(shard, ignore_errors=True)
            write_shard(shard, chunk, self.vocabulary)
            manifest.write(shard)
            shards.append(shard)
        return shards

    def _jobs(self, name: str, rows: list[Rows], per_piece: int) -> Iterator[_Job]:
        number = 0
        for source in rows:
            records = iter(source)
            while piece := list(islice(records, per_piece)):
                folder = self.folder / f"{name}-{number:05d}"
                yield _Job(folder, piece, source.format, self.vocabulary)
                number += 1

    def _in_order(self, jobs: Iterator[_Job], encoder: Encoder) -> Iterator[Path]:
        """Yield the folders of the jobs, in their order. At most two pieces per worker are in progress."""
        first = list(islice(jobs, 2 * self.workers))
        all_read = len(first) < 2 * self.workers
        workers = min(self.workers, len(first) // PIECES_A_PROCESS) if all_read else self.workers
        if workers < 2:
            for job in (*first, *jobs):
                yield _work(job, encoder)
            return
        # Workers are not forked from this process, whose threads and GPU context would be copied, but from one that has
        # imported what the encoder needs. The encoder has megabytes: if it were sent at the start of each process, they
        # would start one after the other.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread per process
        private = Path(
            tempfile.mkdtemp(prefix="mora-encoder-")
        )  # the encoder is unpickled from there, so only this user may write to it
        tools = private / "encoder.pickle"
        tools.write_bytes(pickle.dumps(encoder))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([type(encoder).__module__])
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(tools,))
        waiting: deque[Future[Path]] = deque(_submit(pool, job) for job in first)
        try:
            for job in jobs:
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(_submit(pool, job))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(private)


@dataclass(frozen=True)
class _Job:
    folder: Path
    records: list[Record]
    format: str
    vocabulary: int

    @property
    def is_done(self) -> bool:
        return (self.folder / "report.json").is_file() and manifest.damage(self.folder) is None


_encoder: Encoder | None = None  # set in a worker process


def _start_worker(tools: Path) -> None:
    global _encoder
    _encoder = pickle.loads(tools.read_bytes())


def _submit(pool: ProcessPoolExecutor, job: _Job) -> Future[Path]:
    if job.is_done:
        done: Future[Path] = Future()
        done.set_result(job.folder)
        return done
    return pool.submit(_work, job)


def _work(job: _Job, encoder: Encoder | None = None) -> Path:
    if job.is_done:
        return job.folder
    encode = encoder or _encoder
    assert encode is not None
    partial = job.folder.with_name(f".partial-{job.folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    encoded = encode(job.records, job.format)
    try:
        write_shard(partial, encoded.samples, job.vocabulary, encoded.families)
        (partial / "report.json").write_text(json.dumps(encoded.report.as_dict()))
        manifest.write(partial)
        shutil.rmtree(job.folder, ignore_errors=True)
        os.rename(partial, job.folder)
    except OSError:  # such as a full disk, which would stay full
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return job.folder
