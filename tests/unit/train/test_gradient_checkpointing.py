"""hardware.gradient_checkpointing: the same losses and gradients, from less memory."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import random_batches, tiny_config
from torch.autograd.graph import saved_tensors_hooks

from mora.config import run_id
from mora.methods import prepare
from mora.models.load import load_model
from mora.models.losses import token_losses
from mora.train.engines import make_engine

ON = "hardware.gradient_checkpointing=true"
DEEP = "model.architecture.num_hidden_layers=3"
METHODS = ["fft", "lora", "dora", "mora"]


def engine_of(method, *overrides):
    config = tiny_config(method, DEEP, *overrides)
    engine = make_engine(prepare(load_model(config.model, config.scale.precision)[0], config), config)
    for name, p in engine.parameters.items():  # zeros would have no gradient but their own
        p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    engine.model.train()
    return engine


def losses_and_gradients(engine):
    torch.manual_seed(1)
    batches = random_batches(lengths=(12, 5))
    losses = [engine.backward(batch, batches.loss_tokens(0)) for batch in batches.micro_batches(0)]
    return losses, {name: p.grad for name, p in engine.parameters.items()}


@pytest.mark.parametrize("dropout", [0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_bit_for_bit_the_same(method, dropout):
    overrides = [] if method == "fft" else [f"method.adapter.dropout={dropout}"]
    losses, gradients = losses_and_gradients(engine_of(method, *overrides))
    again, others = losses_and_gradients(engine_of(method, ON, *overrides))
    assert losses == again
    for name, gradient in gradients.items():
        assert gradient.any(), name
        assert torch.equal(others[name], gradient), name


def saved_bytes(engine):
    """What autograd keeps between forward and backward, each storage once, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = token_losses(engine.model, next(random_batches(8).micro_batches(0))).sum()
    total = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    loss.backward()
    return total


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_what_lies_within_a_layer_is_not_kept(method):
    assert saved_bytes(engine_of(method, ON)) < saved_bytes(engine_of(method)) / 3


def test_evaluation_is_not_computed_twice():
    engine = engine_of("mora", ON)
    training = saved_bytes(engine)
    engine.model.eval()
    assert saved_bytes(engine) > 3 * training


def test_the_run_keeps_its_name_and_captures_no_graph():
    plain, checkpointed = tiny_config("mora", "hardware=gpu1"), tiny_config("mora", "hardware=gpu1", ON)
    assert run_id(plain) == run_id(checkpointed)
    assert plain.hardware.captures_graphs
    assert not checkpointed.hardware.captures_graphs
