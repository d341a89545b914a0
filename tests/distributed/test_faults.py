"""A rank that is killed, stopped or of other code, and a job that goes on with another number of ranks."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from mora.config import ConfigError
from mora.faults import forked
from mora.faults.kills import UUID, Case, run_folder, start, to_its_end
from mora.train import checkpoint, watchdog

TWO = ("scale=smoke", "method=mora", "r=4", "hardware=cpu2", "hardware.parallel=zero2", "task.train.warmup_steps=2")
OFTEN = ("task.train.checkpoint_every_steps=5", "task.evaluation.tasks=[]", "task.train.log_every_steps=1")
CASE = Case("two ranks", (*UUID, *TWO, *OFTEN, "method.adapter.dropout=0"), ranks=2)
DROPS = Case("two ranks that drop", (*UUID, *TWO, *OFTEN, "method.adapter.dropout=0.1"), ranks=2)
LIMIT_S = 20.0


def alone(case):
    """The same run in one process."""
    overrides = (*(o for o in case.overrides if not o.startswith("hardware")), "hardware=cpu")
    return Case(case.name, overrides)


def test_a_stopped_rank_ends_the_job_in_time_with_the_cause_and_the_stacks(tmp_path):
    forked.warm()
    config = CASE.config(tmp_path)
    folder = run_folder(tmp_path, config)
    workers = start(CASE, tmp_path, config, MORA_HANG_S=str(LIMIT_S), MORA_KILL_AT="after_step:7:9")
    deadline = time.monotonic() + 120
    while not checkpoint.latest_step(folder / "checkpoints"):
        if time.monotonic() > deadline:
            for worker in workers:
                worker.kill()
            pytest.fail(f"no checkpoint yet: {(folder / 'output.txt').read_text()[-800:]}")
        time.sleep(0.02)
    os.kill(workers[1].pid, signal.SIGSTOP)
    began = time.monotonic()
    workers[0].join(5 * LIMIT_S)
    assert workers[0].exitcode == watchdog.LEFT_BEHIND
    assert time.monotonic() - began < 4 * LIMIT_S + 10
    workers[1].kill()
    workers[1].join()
    said = (folder / "output.txt").read_text()
    assert "rank 0: no progress for 20 s (MORA_HANG_S): rank 1 does not respond; the job ends" in said
    assert "most recent call first" in said, "the stacks"
    to_its_end(CASE, tmp_path, config)
    assert (tmp_path / "results" / f"{folder.name}.json").is_file(), "it goes on from the checkpoint"


OTHER_MASKS = "now there are 1, and method.adapter.dropout=0.1: each rank draws its own masks"


@pytest.mark.parametrize(("case", "expected"), [(DROPS, OTHER_MASKS), (CASE, None)])
def test_another_number_of_ranks_is_refused_where_masks_would_be_others_and_goes_on_else(tmp_path, case, expected):
    config = case.config(tmp_path)
    for worker in start(case, tmp_path, config, MORA_KILL_AT="after_step:7"):
        worker.join(120)
    said = to_its_end(alone(case), tmp_path, alone(case).config(tmp_path))
    ended = list((tmp_path / "results").glob("*[0-9a-f].json"))
    if expected is None:
        assert len(ended) == 1
        assert "resumed after step 5" in said
    else:
        assert ended == []
        assert f"checkpoints holds a checkpoint of 2 ranks, {expected}" in said
        assert "Traceback" not in said.rpartition("mora.train: ")[2]


def little_memory_on_rank_1():
    """So much that training begins, and a third pass asks for more than the system gives."""
    if os.environ["RANK"] != "1":
        return
    from mora.train.zero import ZeroEngine

    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + 8 * 2**30, here + 8 * 2**30))
    passes, backward = iter(range(10**6)), ZeroEngine.backward

    def larger(self, micro, loss_tokens):
        if next(passes) == 2:
            torch.zeros(2**34, dtype=torch.uint8)
        return backward(self, micro, loss_tokens)

    ZeroEngine.backward = larger


def test_a_rank_without_memory_ends_the_job_with_the_cause_first(tmp_path):
    forked.warm()
    config = CASE.config(tmp_path)
    workers = start(CASE, tmp_path, config, prepare=little_memory_on_rank_1)
    for worker in workers:
        worker.join(90)
    assert [worker.exitcode for worker in workers] == [1, 1]
    said = (run_folder(tmp_path, config) / "output.txt").read_text()
    assert "Traceback" not in said
    cause, follows = (
        said.index("mora.train: out of CPU memory: "),
        said.index("mora.train: rank 0: another rank has ended"),
    )
    assert cause < follows


def other_code():
    from mora.config import source
    from mora.ranks import rank
    from mora.train.worker import check_same_code

    source.of_this_process = lambda: {"fingerprint": f"code{rank()}"}
    try:
        check_same_code()
    except ConfigError as error:
        return str(error)


def test_ranks_of_different_code_say_so_and_end():
    for said in on_ranks(other_code):
        assert said.startswith("the ranks run different code (rank 0: fingerprint code0, torch ")
        assert "; rank 1: fingerprint code1, torch " in said


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan"])
def test_the_time_that_a_job_may_stand_still_is_a_number(given, monkeypatch):
    monkeypatch.setenv("MORA_HANG_S", given)
    with pytest.raises(ConfigError, match=f"^MORA_HANG_S={given}: expected the seconds, above 0"):
        watchdog.limit_s()
