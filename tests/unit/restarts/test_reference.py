"""A trainer that takes its reference from the trained model without its adapter, and one that has a model for it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn
from trainer_runs import EVERY, WARMUP, Watch, arguments, assert_as_the_suite, of_the_suite, rows, run_config
from transformers import Trainer, TrainerCallback

from mora import MoraConfig, RestartCallback
from mora.methods import prepare
from mora.models.load import load_model
from mora.restarts.layers import adapted_layers
from mora.restarts.reference_watch import ReferenceWatch


class WithReference(Trainer):
    """Computes what a reference answers in every step, as trainers of preferences do, and leaves it out of the loss."""

    reference = None

    def compute_loss(self, model, inputs, **options):
        with torch.no_grad():
            if self.reference is not None:
                self.reference(**inputs)
            else:
                with model.disable_adapter():
                    model(**inputs)
        return super().compute_loss(model, inputs, **options)


def training(method, folder, trainer_class, first_callback=None):
    config = run_config(method)
    torch.manual_seed(0)
    model = prepare(load_model(config.model, "fp32")[0], config)
    watch = Watch()
    first = [] if first_callback is None else [first_callback]
    trainer = trainer_class(
        model=model,
        args=arguments(folder, config),
        train_dataset=rows(),
        callbacks=[*first, RestartCallback(EVERY, WARMUP), watch],
    )
    return trainer, watch


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_a_reference_from_the_disabled_adapter_is_refused_in_the_first_step(method, tmp_path):
    trainer, watch = training(method, tmp_path, WithReference)
    with pytest.raises(
        ValueError, match=r"^RestartCallback: step 1 ran .* without the adapter 'default'.*would move .*ref_model="
    ):
        trainer.train()
    assert not watch.steps
    assert all(not layer.delta_weight().any() for layer in adapted_layers(trainer.model))  # before the first update


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_a_reference_that_is_a_model_of_its_own_is_trained_against(method, tmp_path):
    trainer, watch = training(method, tmp_path, WithReference)
    trainer.reference = load_model(run_config(method).model, "fp32")[0]
    trainer.train()
    assert_as_the_suite(watch.steps, of_the_suite(method))


class Compares(TrainerCallback):
    """Runs the model without its adapter between the steps, as an evaluation may."""

    def on_step_end(self, args, state, control, model, **kwargs):
        with torch.no_grad(), model.disable_adapter():
            model(torch.tensor([[1, 2, 3]]))


def test_a_comparison_with_the_base_between_the_steps_is_not_refused(tmp_path):
    trainer, watch = training("remora", tmp_path, Trainer, Compares())
    trainer.train()
    assert_as_the_suite(watch.steps, of_the_suite("remora"))


class Answers(nn.Module):
    """Two adapted layers, of which a row without an image runs one, as in models of images and text."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, image=None):
        return self.text(x if image is None else x + self.image(image))


def test_a_reference_that_runs_only_some_of_the_layers_is_noticed():
    model = get_peft_model(Answers(), MoraConfig(r=1, target_modules=["image", "text"]))
    watch = ReferenceWatch(model, adapted_layers(model))
    model(torch.ones(2, 8))
    watch.check(1)
    with model.disable_adapter():
        model(torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"step 1 ran base_model\.model\.text without the adapter"):
        watch.check(1)


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


class Copies(TrainerCallback):
    """Makes a copy of the model in training."""

    def on_step_end(self, args, state, control, model, **kwargs):
        self.model = copy.deepcopy(model)


def test_after_the_training_the_model_runs_without_its_adapter_as_any_other(tmp_path):
    trainer, _ = training("remora", tmp_path, Trainer, copies := Copies())
    trainer.train()
    assert not hooks(trainer.model)
    with copies.model.disable_adapter():
        copies.model(torch.tensor([[1, 2, 3]]))


def test_a_training_that_was_refused_leaves_no_hook(tmp_path):
    trainer, _ = training("remora", tmp_path, WithReference)
    with pytest.raises(ValueError, match="step 1 ran"):
        trainer.train()
    assert not hooks(trainer.model)


def test_a_compiled_layer_is_watched_without_a_graph_break():
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), MoraConfig(r=1, target_modules=["0"]))
    watch = ReferenceWatch(model, adapted_layers(model))
    compiled = torch.compile(model.base_model.model[0], fullgraph=True, backend="eager")
    compiled(torch.ones(2, 8))
    assert watch.seen is None
    with model.disable_adapter():
        compiled(torch.ones(2, 8))
    assert watch.seen is not None
