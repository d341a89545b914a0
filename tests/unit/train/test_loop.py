"""The loop itself: what it measures, what stops it, and that it goes on from a checkpoint as if it had never stopped."""

import signal
from contextlib import suppress

import pytest
import torch
from tiny_runs import random_batches, tiny_config, tiny_engine

from mora.errors import DamagedFileError
from mora.train import log, resume
from mora.train import speed as speed_module
from mora.train.checkpoint import latest_step
from mora.train.loop import Diverged, fit
from mora.train.stop_signal import Interrupted


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Engine:
    """A step takes a second. Its gradient norms are given."""

    model, device = torch.nn.Linear(1, 1), torch.device("cpu")

    def __init__(self, clock, norms=()):
        self.clock, self.norms = clock, iter(norms)

    def backward(self, batch, loss_tokens):
        return torch.tensor(1.0)

    def step(self, lr, max_grad_norm):
        self.clock.now += 1
        return torch.tensor(next(self.norms, 1.0))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def config_of_ten_steps(method="fft", *overrides):
    return tiny_config(method, "task.train.stop_step=10", "task.train.log_every_steps=5", *overrides)


@pytest.mark.parametrize("evaluated", [(), (3,), (5,), (1, 2, 4, 7)])
def test_the_speed_is_that_of_steps_wherever_an_evaluation_lies(evaluated, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed_module, "time", clock)

    def evaluate(step, resumed):
        clock.now += 100 * (step in evaluated)
        return {"metric": 1.0} if step in evaluated else {}

    batches = random_batches()
    speed = fit(Engine(clock), batches, config_of_ten_steps(), tmp_path, evaluate)
    assert speed["step_s"] == speed["fastest_s"] == 1.0
    assert speed["tokens_per_s"] == batches.loss_tokens(0)
    assert speed["padded_tokens"] == sum(micro.input_ids.numel() for micro in batches.micro_batches(0))
    assert [row["step"] for row in log.read(tmp_path / "log.jsonl") if "metric" in row] == list(evaluated)


@pytest.mark.parametrize("evaluated", [(), (3,)])
def test_a_norm_that_is_not_finite_stops_the_run_also_where_an_evaluation_writes_it(evaluated, tmp_path):
    def evaluate(step, resumed):
        return {"metric": 1.0} if step in evaluated else {}

    engine = Engine(Clock(), [1.0, 1.0, float("inf")])
    with pytest.raises(Diverged, match=r"step 3: loss 2\.0, gradient norm inf, lr .*; last good checkpoint: step 0"):
        fit(engine, random_batches(), config_of_ten_steps(), tmp_path, evaluate)
    assert "grad_norm" in log.read(tmp_path / "log.jsonl")[2]


def test_no_restart_on_the_last_step(tmp_path):
    config = config_of_ten_steps("relora", "method.restart.every_steps=5", "method.restart.warmup_steps=1", "lr=1e-3")
    fit(tiny_engine(config), random_batches(), config, tmp_path, lambda step, resumed: {})
    assert [row["step"] for row in log.read(tmp_path / "log.jsonl") if "restart" in row] == [5]


class Killed(Exception):
    pass


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_from_the_checkpoint_of_a_restart_as_if_never_stopped(dtype, stale, tmp_path):
    config = config_of_ten_steps(
        "relora",
        "method.restart.every_steps=4",
        "method.restart.warmup_steps=1",
        f"method.restart.stale_masters={stale}",
        "task.train.checkpoint_every_steps=4",
        "lr=1e-2",
    )

    asked = []

    def run(folder, killed_at=None):
        engine = tiny_engine(config, dtype)

        def evaluate(step, resumed):
            asked.append(step)
            if step == killed_at:
                raise Killed
            return {} if step % 2 else {"metric": sum(p.double().sum().item() for p in engine.model.parameters())}

        return fit(engine, random_batches(), config, folder, evaluate)

    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    run(tmp_path / "whole")
    asked.clear()
    for step in (4, 5, 9, 10):
        with pytest.raises(Killed):
            run(tmp_path / "killed", killed_at=step)
    assert run(tmp_path / "killed") is None, "all steps were saved"
    asked_again = [4, 4, 8, 10]  # of the checkpoint, which is written before its evaluation
    assert sorted(asked) == sorted([*range(1, 11), *asked_again, 5, 9]), "a step's evaluation is missing"
    keys = ("step", "metric", "loss", "grad_norm", "lr", "restart", "restart_kept")
    curves = [
        [[row.get(key) for key in keys] for row in log.read(tmp_path / name / "log.jsonl")]
        for name in ("whole", "killed")
    ]
    assert len(curves[0]) == 15
    assert curves[0] == curves[1]


def test_a_signal_during_the_last_step_leaves_its_evaluation_to_the_resumed_run(tmp_path):
    class Signalled(Engine):
        def step(self, lr, max_grad_norm):
            if self.clock.now == 9:
                signal.raise_signal(signal.SIGTERM)
            return super().step(lr, max_grad_norm)

    asked = []

    def evaluate(step, resumed):
        asked.append(step)
        return {"metric": 1.0} if step == 10 else {}

    with pytest.raises(Interrupted, match="stopped by signal after step 10; a checkpoint was saved"):
        fit(Signalled(Clock()), random_batches(), config_of_ten_steps(), tmp_path, evaluate)
    assert asked == list(range(1, 10))
    assert fit(Engine(Clock()), random_batches(), config_of_ten_steps(), tmp_path, evaluate) is None
    assert asked == list(range(1, 11))
    assert [row["step"] for row in log.read(tmp_path / "log.jsonl")] == [*range(1, 11), 10]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("overrides", "step"), [((), 10), (("task.evaluation.at_steps=[7]",), 7)])
def test_a_signal_in_an_evaluation_ends_it_at_once(overrides, step, name, tmp_path):
    def evaluate(done, resumed):
        if done == step:
            with suppress(Exception):  # as libraries do
                signal.raise_signal(name)
            pytest.fail("it went on")
        return {}

    with pytest.raises(Interrupted, match=f"stopped by signal after step {step}, in its evaluation; a checkpoint"):
        fit(Engine(Clock()), random_batches(), config_of_ten_steps("fft", *overrides), tmp_path, evaluate)
    assert latest_step(tmp_path / "checkpoints") == step


def test_a_signal_in_an_evaluation_without_a_checkpoint_waits_for_the_next_step(tmp_path):
    asked = []

    def evaluate(step, resumed):
        asked.append(step)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Interrupted, match="after step 4; "):
        fit(Engine(Clock()), random_batches(), config_of_ten_steps(), tmp_path, evaluate)
    assert asked == [1, 2, 3]
    assert latest_step(tmp_path / "checkpoints") == 4


@pytest.mark.parametrize("scale", ["smoke", "lite"])
def test_a_run_does_not_go_on_with_other_code_but_at_scale_smoke(scale, tmp_path, monkeypatch):
    config = config_of_ten_steps("fft", "task.train.checkpoint_every_steps=4")
    config = config.model_copy(update={"scale": config.scale.model_copy(update={"name": scale})})

    def killed(step, resumed):
        if step == 5:
            raise Killed
        return {}

    with pytest.raises(Killed):
        fit(tiny_engine(config), random_batches(), config, tmp_path, killed)
    monkeypatch.setattr(resume, "of_this_process", lambda: {"fingerprint": "another"})
    if scale == "smoke":
        fit(tiny_engine(config), random_batches(), config, tmp_path, lambda *_: {})
        return
    with pytest.raises(DamagedFileError, match=r"made by other code .*, now another\): resume with the commit"):
        fit(tiny_engine(config), random_batches(), config, tmp_path, lambda *_: {})
