"""Forward and backward pass of small models under torch.compile, each case in a process of its own.

All cases compile at the same time, since one after the other would take minutes each. Then they are timed in turn, round
after round, while the others wait. If a case fails, the others go on, and none finds another's compiler caches.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from . import step
from .models import Case, build_base, dtype_on, trainable_parameters, with_method
from .step import BAR, Scenario

UNTIMED = 2  # steps of a turn before the timed one: they allocate again what the last turn gave back
FAREWELL_S = 10.0  # the time that a process has to end by itself


@dataclass(frozen=True)
class Plan:
    """The scenarios, the `backend` of torch.compile (in its default mode), and the time until a case's steps must run."""

    scenarios: tuple[Scenario, ...]
    backend: str = "inductor"
    patience_s: float = 240.0


CASES = BAR[1:4]
SMALL = Plan((Scenario("smollm2_135m", 100, 72, CASES),))
FULL = Plan((*SMALL.scenarios, Scenario("qwen25_coder_0b5", 50, 72, CASES)))
SMOKE = Plan((Scenario("one_layer", 2, 32, (Case("lora", 2), Case("mora", 2, "sharing"))),), "aot_eager", 300.0)


@dataclass
class _Worker:
    """A case in its process. `result` has an "error" if there is nothing to time."""

    scenario: Scenario
    case: Case
    process: BaseProcess
    pipe: Connection
    result: dict[str, Any] = field(default_factory=dict)

    def send(self, go_on: bool) -> None:
        with suppress(BrokenPipeError):  # `answer` then gives the error
            self.pipe.send(go_on)

    def answer(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            return {"error": "its process died"}


def measure(plan: Plan, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield each scenario's cases: the milliseconds of every round, the seconds to the first step, the graphs compiled."""
    with _workers(plan, device) as workers:
        _await_first_steps(workers, plan.patience_s)
        for scenario in plan.scenarios:
            mine = [worker for worker in workers if worker.scenario == scenario]
            for _ in range(rounds):
                for worker in mine:
                    _take_turn(worker)
            cases = [asdict(worker.case) | {"name": worker.case.name} | worker.result for worker in mine]
            yield {
                "shape": scenario.shape,
                "batch_size": scenario.batch_size,
                "length": scenario.length,
                "backend": plan.backend,
                "cases": cases,
            }


@contextmanager
def _workers(plan: Plan, device: torch.device) -> Iterator[list[_Worker]]:
    cases = [(scenario, case) for scenario in plan.scenarios for case in scenario.cases]
    threads = max(1, 2 * (os.cpu_count() or 1) // len(cases))
    workers = []
    try:
        for scenario, case in cases:
            context = mp.get_context("forkserver")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, scenario, case, plan.backend, device, threads))
            process.start()
            theirs.close()  # so that the end of the process is noticed
            workers.append(_Worker(scenario, case, process, ours, {"ms": []}))
        yield workers
    finally:
        for worker in workers:
            worker.send(False)
        for worker in workers:
            worker.process.join(FAREWELL_S)
            worker.process.kill()
            worker.process.join()


def _await_first_steps(workers: list[_Worker], patience_s: float) -> None:
    waiting = {worker.pipe: worker for worker in workers}
    deadline = time.monotonic() + patience_s
    while waiting and (ready := wait(list(waiting), max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            worker = waiting.pop(pipe)  # type: ignore[call-overload]
            worker.result |= worker.answer()
            print(f"  {worker.scenario.shape:18} {worker.case.name:28} {worker.result}", flush=True)
    for worker in waiting.values():
        worker.result["error"] = f"not compiled within {patience_s:.0f} s"
        worker.process.kill()  # or it would disturb the timing of the others


def _take_turn(worker: _Worker) -> None:
    if "error" in worker.result:
        return
    worker.send(True)
    answer = worker.answer()
    if isinstance(answer, dict):
        worker.result |= answer
    else:
        worker.result["ms"].append(answer)


def _serve(pipe: Connection, scenario: Scenario, case: Case, backend: str, device: torch.device, threads: int) -> None:
    """Compile and report, then answer each message with the milliseconds of a step."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        torch._inductor.config.compile_threads = threads
        base = build_base(scenario.shape, device, dtype_on(device))
        model = with_method(base, case)
        tokens = step.random_tokens(scenario, device)
        compiled: Any = torch.compile(model, backend=backend, dynamic=False)
        run = step.forward_and_backward(compiled, tokens, case)
        first_s = step.milliseconds(run, device) / 1e3
        for _ in range(step.WARM_UP):
            run()
        _give_back(device)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        pipe.send({"trainable": trainable_parameters(model), "first_step_s": first_s, "graphs": graphs})
        while pipe.recv():
            for _ in range(UNTIMED):
                run()
            pipe.send(step.milliseconds(run, device))
            _give_back(device)
    except torch.OutOfMemoryError:
        pipe.send({"error": "out of memory"})
    except Exception as error:  # a compiler may raise anything; it becomes a row of the table
        pipe.send({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})


def _end_with_parent() -> None:
    """End this process when its parent ends, so that a killed benchmark leaves no compilation behind."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _give_back(device: torch.device) -> None:
    """Free the memory of activations for the next case's process."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
