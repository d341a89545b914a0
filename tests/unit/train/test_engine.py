"""The engine's precision policy: bf16 weights, fp32 masters, sums and clipping in fp32."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import TINY, random_batches, tiny_config, tiny_engine, train_step

from mora.config.cached_composition import compose_cached as compose
from mora.data import uuid
from mora.data.batches import Batches
from mora.methods import merged, prepare
from mora.models.load import load_model
from mora.train.engine import TorchEngine


def _engine(method: list[str], dtype: torch.dtype) -> tuple[TorchEngine, Batches]:
    config = compose([*TINY, *method])
    model, tokenizer = load_model(config.model, "bf16" if dtype == torch.bfloat16 else "fp32")
    engine = TorchEngine(prepare(model, config).train(), config.task.train, dtype)
    samples = [uuid.encode(pair, tokenizer, "all") for pair in uuid.make_pairs(config.task.data)]
    return engine, Batches(samples, pad_id=0, global_batch_size=16, micro_batch_size=4, seed=0)


def _train(engine: TorchEngine, batches: Batches, steps: range, lr: float = 1e-5) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        tokens = batches.loss_tokens(step)
        losses.append(sum(float(engine.backward(micro, tokens)) for micro in batches.micro_batches(step)))
        engine.step(lr, max_grad_norm=1.0)
    return losses


@pytest.mark.parametrize("method", [["method=fft"], ["method=lora", "r=8"], ["method=mora", "r=8"]], ids=lambda m: m[0])
def test_masters_take_updates_that_bf16_would_lose(method):
    engine, batches = _engine(method, torch.bfloat16)
    masters = {name: p.detach().clone() for name, p in engine.masters.items()}
    _train(engine, batches, range(3))
    moved = [name for name, p in engine.masters.items() if not torch.equal(p, masters[name])]
    assert len(moved) > len(masters) / 2
    for name, p in engine.parameters.items():
        assert p.dtype == torch.bfloat16
        assert engine.masters[name].dtype == torch.float32
        assert p.grad is None
        assert torch.equal(p, engine.masters[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_of_the_whole_gradient_and_is_clipped_to_the_one_given(dtype):
    updates = []
    for clip in (1e9, 1e-3):
        engine = tiny_engine(tiny_config("fft", "task.train.adam_eps=1e3"), dtype)  # so large that updates follow size
        before = {name: m.detach().clone() for name, m in engine.masters.items()}
        batches = random_batches()
        for micro in batches.micro_batches(0):
            engine.backward(micro, batches.loss_tokens(0))
        whole = torch.cat([m.grad.flatten() for m in engine.masters.values()]).norm()
        assert engine.step(1e3, clip).item() == pytest.approx(whole.item(), rel=1e-4)
        updates.append(torch.cat([(m.detach() - before[name]).flatten() for name, m in engine.masters.items()]))
    torch.testing.assert_close(updates[1] * (whole / 1e-3), updates[0], rtol=2e-2, atol=1e-4)


def test_full_precision_shows_the_masters_and_takes_them_away():
    engine, batches = _engine(["method=mora", "r=8"], torch.bfloat16)
    _train(engine, batches, range(2))
    before = {name: p.data for name, p in engine.parameters.items()}
    with engine.fp32_masters():
        assert all(torch.equal(p, engine.masters[name]) for name, p in engine.parameters.items())
    assert all(
        p.data is before[name] or p.data_ptr() == before[name].data_ptr() for name, p in engine.parameters.items()
    )
    assert all(p.dtype == torch.bfloat16 for p in engine.parameters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_goes_on_bit_for_bit(dtype):
    engine, batches = _engine(["method=mora", "r=8"], dtype)
    _train(engine, batches, range(2), lr=1e-2)
    state = torch.load(_saved(engine), weights_only=True)
    straight = _train(engine, batches, range(2, 4), lr=1e-2)
    again, batches = _engine(["method=mora", "r=8"], dtype)
    again.load_state_dict(state)
    assert _train(again, batches, range(2, 4), lr=1e-2) == straight


def _saved(engine: TorchEngine):
    import io

    file = io.BytesIO()
    torch.save(engine.state_dict(), file)
    file.seek(0)
    return file


def test_bf16_follows_fp32():
    curves = [_train(*_engine(["method=mora", "r=8"], d), range(8), lr=1e-2) for d in (torch.float32, torch.bfloat16)]
    assert curves[1] == pytest.approx(curves[0], abs=0.05)
    assert curves[1][-1] < curves[1][0] - 0.1


def test_a_frozen_half_of_an_adapter_computes_in_bf16_and_merges_unrounded():
    engine = tiny_engine(tiny_config("asylora", "method.adapter.freeze_a=true"), torch.bfloat16)
    (a,) = (p for name, p in engine.model.named_parameters() if "q_proj.lora_A" in name)
    rounded = a.data.clone()
    assert rounded.dtype == torch.bfloat16
    losses = [train_step(engine, random_batches(), 0, 1e-2) for _ in range(4)]
    assert losses[-1] < losses[0]
    with engine.materialized(), merged(engine.model, torch.bfloat16):
        assert a.dtype == torch.float32
        assert torch.equal(a.bfloat16(), rounded)
        assert not torch.equal(a, rounded.float())
    assert torch.equal(a, rounded)


def test_a_random_model_in_bf16_keeps_its_rotary_frequencies_in_fp32():
    model, _ = load_model(compose(["task=uuid", "method=fft", "scale=smoke"]).model, "bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
