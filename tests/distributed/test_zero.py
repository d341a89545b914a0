"""Restarts, accumulation and checkpoints on two CPU ranks, in plain torch and with real DeepSpeed."""

import io
import time
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from ranks import Ranks, on_ranks
from tiny_runs import random_batches, tiny_config

from mora.methods import parameter_groups, prepare, train_rest
from mora.models.load import load_model
from mora.models.losses import token_losses
from mora.models.structure import plain_head
from mora.restarts.restart import RestartFailed
from mora.train.distributed import RankShard, rank, sum_over_ranks
from mora.train.engine import TorchEngine
from mora.train.engines import checkpoint_layers
from mora.train.restart import RunRestarts

PARALLEL = ["ddp", "zero1", "zero2", "zero3"]
EVERY = ["method.restart.every_steps=5", "method.restart.warmup_steps=1", "task.train.adam_eps=1e-6"]
UNEVEN = (12, 5, 9)  # lengths, so that the ranks' shares hold different numbers of tokens
LR = 3e-3


@pytest.fixture(scope="module")
def ranks():
    with Ranks() as two:
        yield two


def make(method, parallel, precision="fp32", overrides=(), offload=False):
    config = tiny_config(method, *(EVERY if method.startswith("re") else EVERY[2:]), *overrides)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = prepare(load_model(config.model, precision)[0], config)
    if config.method.restart is not None:
        train_rest(model)  # as in pretraining: some parameters must keep their moments
    groups = parameter_groups(model, config)
    if parallel in ("none", "ddp"):
        engine = TorchEngine(model, config.task.train, dtype, groups=groups)
    else:
        from mora.train.zero import ZeroEngine

        engine = ZeroEngine(model, config.task.train, dtype, groups, int(parallel[-1]), offload)
    return engine, RunRestarts(engine, config)


def one_step(engine, batches, step, lr=LR, clip=1.0):
    tokens = batches.loss_tokens(step)
    loss = sum_over_ranks(torch.stack([engine.backward(m, tokens) for m in batches.micro_batches(step)]).sum())
    norm = engine.step(lr, clip)
    return loss.item(), norm.item()


def some_steps(method, parallel, precision="fp32", micro=2, offload=False, steps=20, every=5, after_step=None):
    """Loss and gradient norm of the steps, with a restart after each `every` of them: three, unless told otherwise."""
    engine, restarts = make(method, parallel, precision, offload=offload)
    batches, curve = RankShard(random_batches(micro, UNEVEN)), []
    for step in range(steps):
        curve.append(one_step(engine, batches, step))
        if after_step:
            after_step(engine)
        if restarts.settings and (step + 1) % every == 0 and step + 1 < steps:
            restarts.apply()
    return curve


@cache
def alone(method, **how):
    return some_steps(method, "none", **how)


def assert_close(rows, expected, tolerance):
    for (loss, norm), (expected_loss, expected_norm) in zip(rows, expected, strict=True):
        assert loss == pytest.approx(expected_loss, abs=tolerance)
        assert norm == pytest.approx(expected_norm, rel=100 * tolerance)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("method", ["relora", "remora"])
def test_in_fp32_twenty_steps_with_three_restarts_follow_one_process(ranks, method, parallel):
    first, second = ranks(some_steps, method, parallel)
    assert first == second
    assert_close(first, alone(method), 1e-5)


IN_BF16 = {"steps": 24, "every": 10}  # two restarts


def apart(losses, others):
    """Root mean square of the differences of the first ten steps, before a restart rounds a base weight the other way."""
    pairs = zip(losses[:10], others[:10], strict=True)
    return sum((loss - other) ** 2 for loss, other in pairs) ** 0.5 / 10**0.5


def ten_in_bf16(micro=2, after_step=None):
    return [loss for loss, _ in some_steps("remora", "none", "bf16", micro, steps=10, every=10, after_step=after_step)]


@cache
def rounding():
    """How far plain torch is from itself where it only adds its gradients up in other pieces: this CPU's rounding."""
    return max(apart(ten_in_bf16(micro), ten_in_bf16()) for micro in (1, 4, 8))


@pytest.mark.parametrize("parallel", PARALLEL)
def test_in_bf16_the_loss_stays_beside_that_of_fp32(ranks, parallel):
    first, _ = ranks(partial(some_steps, "remora", parallel, "bf16", **IN_BF16))
    losses = [loss for loss, _ in first]
    assert losses == pytest.approx([loss for loss, _ in alone("remora", **IN_BF16)], abs=0.02)
    # One precision policy: the loss is that of plain torch but for rounding.
    assert apart(losses, ten_in_bf16()) < 2 * rounding()


def round_masters(engine):
    for p in engine.parameters.values():
        engine.assign(p, p.detach().float())


def test_another_precision_policy_is_further_away_than_rounding():
    """Without masters in fp32 the bound of the test above is exceeded."""
    assert apart(ten_in_bf16(after_step=round_masters), ten_in_bf16()) > 4 * rounding()


def first_masters(parallel):
    (engine, _), (plain, _) = (make("asylora", how, "bf16") for how in (parallel, "ddp"))
    masters = {name: (engine.master(p).clone(), plain.masters[name]) for name, p in engine.parameters.items()}
    return [name for name, (ours, unrounded) in masters.items() if not torch.equal(ours, unrounded)]


@pytest.mark.parametrize("parallel", ["zero1", "zero3"])
def test_masters_start_unrounded_as_in_plain_torch(ranks, parallel):
    assert ranks(first_masters, parallel) == [[], []]


def fuse_the_loss(methods, parallel):
    engines = [make(method, parallel)[0] for method in methods]
    return [plain_head(engine.engine) is not None for engine in engines]


@pytest.mark.parametrize(("parallel", "fused"), [("zero1", True), ("zero2", True), ("zero3", False)])
def test_the_loss_is_fused_unless_the_head_is_hooked(ranks, parallel, fused):
    assert ranks(fuse_the_loss, ["fft", "mora"], parallel) == [[fused, fused]] * 2


@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_offloading_changes_nothing(ranks, parallel):
    first, second = ranks(partial(some_steps, "remora", parallel, offload=True, steps=10))  # with one restart
    assert first == second
    assert_close(first, alone("remora", steps=10), 1e-5)


@pytest.mark.parametrize(
    ("parallel", "micro"), [("none", 1), ("none", 8), ("ddp", 4), ("zero1", 4), ("zero2", 1), ("zero3", 2)]
)
def test_micro_batches_accumulation_and_ranks_give_one_curve(ranks, parallel, micro):
    run = partial(some_steps, "lora_plus", parallel, "fp32", micro, steps=10)
    curve = run() if parallel == "none" else ranks(run)[0]
    assert_close(curve, alone("lora_plus", steps=10), 1e-5)


def around_a_restart(parallel):
    engine, restarts = make("relora", parallel)
    batches = RankShard(random_batches(4, UNEVEN))
    for step in range(4):
        one_step(engine, batches, step)
    others = [{k: v.clone() for k, v in s.items()} for s in engine.optimizer_states(adapter=False)]

    def loss():
        with torch.no_grad():
            model = getattr(engine, "engine", engine.model)
            return sum(token_losses(model, batch).mean().item() for batch in random_batches(8, UNEVEN).micro_batches(0))

    losses = [loss()]
    restarts.apply()
    losses.append(loss())
    zero = not any(v.any() for s in engine.optimizer_states(adapter=True) for v in s.values())
    kept = all(
        torch.equal(old[k], new[k])
        for old, new in zip(others, engine.optimizer_states(adapter=False), strict=True)
        for k in old
    )
    alive = any(s["exp_avg_sq"].any() for s in others)
    one_step(engine, batches, 4, lr=0.0)
    losses.append(loss())
    return losses, zero, kept, alive


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_restart_leaves_the_output_and_the_other_moments_alone(ranks, parallel):
    for losses, zero, kept, alive in ranks(around_a_restart, parallel):
        assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
        assert zero
        assert kept
        assert alive


def checkpointed(parallel):
    curves = []
    for on in (False, True):
        engine, _ = make("mora", parallel, overrides=["method.adapter.dropout=0.3"])
        if on:
            checkpoint_layers(engine.model)
        engine.model.train()
        batches = RankShard(random_batches(2, UNEVEN))
        curves.append([])
        for step in range(4):
            torch.manual_seed(step)
            curves[-1].append(one_step(engine, batches, step))
    return curves


@pytest.mark.parametrize("parallel", PARALLEL)
def test_gradient_checkpointing_changes_nothing(ranks, parallel):
    plain, again = ranks(checkpointed, parallel)[0]
    assert_close(again, plain, 1e-7)


def what_a_restart_said():
    engine, restarts = make("relora", "zero1")
    one_step(engine, RankShard(random_batches(4)), 0)
    facts = restarts.apply()
    return facts["restart_kept"], facts["restart_rounding"]


def test_every_rank_is_told_what_the_base_kept_of_the_update(ranks):
    first, second = ranks(what_a_restart_said)
    assert first == second
    assert first[0] == pytest.approx(1, abs=1e-3)


def with_stale_masters(parallel):
    changes = []
    for stale in (False, True):
        engine, restarts = make("relora", parallel, overrides=[f"method.restart.stale_masters={stale}"])
        batches = RankShard(random_batches(4, UNEVEN))
        for step in range(4):
            one_step(engine, batches, step)
        before, _ = one_step(engine, batches, 4, lr=0.0)
        restarts.apply()
        one_step(engine, batches, 4, lr=1e-6)
        after, _ = one_step(engine, batches, 4, lr=0.0)
        changes.append(abs(after - before))
    return changes


@pytest.mark.parametrize("parallel", ["zero1", "zero3"])
def test_stale_masters_count_the_update_twice_as_in_the_official_code(ranks, parallel):
    renewed, stale = ranks(with_stale_masters, parallel)[0]
    assert renewed < 1e-3
    assert stale > 10 * renewed


def unlike_ranks():
    engine, restarts = make("relora", "ddp")
    one_step(engine, RankShard(random_batches(4)), 0)
    reinitialise = restarts._reinitialise

    def unlike():
        reinitialise()
        restarts.layers[0].base.data.add_(1e-4 * rank())

    restarts._reinitialise = unlike
    try:
        restarts.apply()
    except RestartFailed as error:
        return str(error)
    return "passed"


def changed_base():
    engine, restarts = make("relora", "ddp")
    batches, failures = RankShard(random_batches(4)), []
    one_step(engine, batches, 0)
    restarts.apply()
    restarts.layers[0].base.data.mul_(1.5)  # which rank 0 alone can compare with the exact sum
    for check in (restarts.check_base, restarts.apply):
        try:
            check()
        except RestartFailed as error:
            failures.append(str(error))
    return failures


def test_every_rank_ends_where_the_first_finds_a_changed_base(ranks):
    for failures in ranks(changed_base):
        assert len(failures) == 2
        assert all("something else changed it" in failure for failure in failures)


def test_ranks_that_differ_after_a_restart_stop_the_run(ranks):
    for answer in ranks(unlike_ranks):
        assert "the ranks hold different weights" in answer


def saved_and_loaded(method, parallel, overrides=(), done=7):
    engine, restarts = make(method, parallel, overrides=overrides)
    batches = RankShard(random_batches(4, UNEVEN))
    for step in range(done):
        one_step(engine, batches, step)
        if step == 4:
            restarts.apply()
    state = {"engine": engine.state_dict(), "restart": restarts.state_dict()}
    assert bool(state["engine"]["weights"]) == (rank() == 0), "copies of every rank would not fit into memory"
    saved = io.BytesIO()
    torch.save(state, saved)
    payload = [torch.load(io.BytesIO(saved.getvalue()))]
    if parallel != "none":
        torch.distributed.broadcast_object_list(payload)  # rank 0's, as from one file
    other, again = make(method, parallel, overrides=overrides)
    again.load_state_dict(payload[0]["restart"])
    other.load_state_dict(payload[0]["engine"])
    again.resume(done)
    went_on = [one_step(engine, batches, step) for step in range(done, done + 4)]
    resumed = [one_step(other, batches, step) for step in range(done, done + 4)]
    return went_on, resumed, saved.getvalue()


@pytest.mark.parametrize("parallel", ["ddp", "zero2", "zero3"])
def test_a_checkpoint_goes_on_alike_and_on_another_number_of_ranks(ranks, parallel):
    went_on, resumed, saved = ranks(saved_and_loaded, "remora", parallel)[0]
    state = torch.load(io.BytesIO(saved))
    assert_close(resumed, went_on, 1e-5)
    engine, restarts = make("remora", "none")
    restarts.load_state_dict(state["restart"])
    engine.load_state_dict(state["engine"])
    single = [one_step(engine, random_batches(4, UNEVEN), step) for step in range(7, 11)]
    assert_close(single, went_on, 1e-5)


@pytest.mark.parametrize("parallel", ["zero1", "zero3"])
def test_stale_masters_come_back_also_after_a_checkpoint(ranks, parallel):
    stale = ["method.restart.stale_masters=true"]
    went_on, resumed, _ = ranks(saved_and_loaded, "relora", parallel, stale, 5)[0]
    assert_close(resumed, went_on, 1e-5)


def finds_the_made_up_data(folder):
    from mora.evaluate import synthetic
    from mora.train.scoring import Scoring

    write = synthetic.write
    synthetic.write = lambda path: (time.sleep(1), write(path))
    Scoring(tiny_config("fft"), SimpleNamespace(pairs=[]), None, 0, folder)
    return (folder / "evaluation_data" / "c4" / "validation.jsonl").is_file()


def test_no_rank_looks_for_made_up_data_before_the_first_has_written_them(tmp_path):
    assert on_ranks(finds_the_made_up_data, tmp_path) == [True, True]
