"""`merged` and `rounded`: the saved model inside, the training model outside, bit for bit."""

from __future__ import annotations

import pytest
import torch

from mora.config.cached_composition import compose_cached as compose
from mora.methods import merged, prepare, rounded
from mora.models.dtypes import DTYPES
from mora.models.load import load_model
from mora.train.engine import TorchEngine


@pytest.mark.parametrize("method", [["method=lora", "r=4"], ["method=mora", "r=4"], ["method=fft"]], ids=lambda m: m[0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_base_is_as_before_at_its_address(method, precision):
    config = compose(["task=uuid", *method, "scale=smoke"])
    model, _ = load_model(config.model, precision)
    model = prepare(model, config).eval()
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name or "mora_M" in name:
            torch.nn.init.normal_(p, std=0.1)
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    ids = torch.randint(3, 100, (2, 16))
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with merged(model, DTYPES[precision]):
            inside = model(input_ids=ids).logits
            if method != ["method=fft"]:
                changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n][1])]
                assert changed
                assert all("base_layer" in n for n in changed)
        after = model(input_ids=ids).logits
    tolerance = 1e-4 if precision == "fp32" else 0.5
    torch.testing.assert_close(inside, plain, atol=tolerance, rtol=tolerance)
    assert torch.equal(after, plain)
    for name, p in model.named_parameters():
        address, value = before[name]
        assert p.data_ptr() == address, name
        assert torch.equal(p, value), name


def test_merged_restores_weights_after_an_error():
    config = compose(["task=uuid", "method=mora", "r=4", "scale=smoke"])
    model = prepare(load_model(config.model, "bf16")[0], config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), merged(model, torch.bfloat16):
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("method", [["method=fft"], ["method=mora", "r=4"]], ids=lambda m: m[0])
def test_what_is_held_in_fp32_is_rounded_as_a_bf16_checkpoint_would_be(method):
    config = compose(["task=c4", *method, "scale=smoke"])  # pretraining: embeddings, norms and head train too
    model = prepare(load_model(config.model, "bf16")[0], config).eval()
    engine = TorchEngine(model, config.task.train, torch.bfloat16)
    ids = torch.randint(3, 100, (2, 16))
    with torch.no_grad():
        trained = model(input_ids=ids).logits
        with engine.materialized():
            masters = {name: p.data for name, p in model.named_parameters()}
            with merged(model, torch.bfloat16):
                inside = model(input_ids=ids).logits
            assert all(
                p.data is masters[name] or torch.equal(p.data, masters[name]) for name, p in model.named_parameters()
            )
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, trained)  # MoRA starts at zero: the merged model is the trained one


@pytest.mark.parametrize("task", ["uuid", "c4"])  # in pretraining embeddings, norms and head train, too
@pytest.mark.parametrize("method", [["method=fft"], ["method=lora", "r=4"], ["method=mora", "r=4"]], ids=lambda m: m[0])
def test_rounded_masters_compute_what_is_trained(method, task):
    config = compose([f"task={task}", *method, "scale=smoke"])
    model = prepare(load_model(config.model, "bf16")[0], config).eval()
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name or "mora_M" in name:
            torch.nn.init.normal_(p, std=0.1)
    engine = TorchEngine(model, config.task.train, torch.bfloat16)
    ids = torch.randint(3, 100, (2, 16))
    with torch.no_grad():
        trained = model(input_ids=ids).logits
        with engine.materialized():
            masters = [p.data for p in model.parameters()]
            assert torch.float32 in {value.dtype for value in masters}
            with rounded(model, torch.bfloat16):
                inside = model(input_ids=ids).logits
            assert all(torch.equal(p.data, value) for p, value in zip(model.parameters(), masters, strict=True))
    assert torch.equal(inside, trained)
