"""One run twice: in the suite's loop, and in transformers.Trainer with RestartCallback; what each step leaves."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tiny_runs import random_batches, tiny_config, tiny_engine
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from mora import RestartCallback
from mora.methods import prepare
from mora.models.load import load_model
from mora.restarts.layers import adapted_layers
from mora.train.restart import RunRestarts
from mora.train.schedule import learning_rate

LR, EVERY, WARMUP, STEPS = 3e-3, 4, 2, 14
OVERRIDES = (
    f"method.restart.every_steps={EVERY}",
    f"method.restart.warmup_steps={WARMUP}",
    "task.train.warmup_steps=0",
    "task.train.schedule=linear",
    "task.train.min_lr_ratio=0",
    "task.train.adam_eps=1e-6",
)

SAVING = {"save_strategy": "steps", "save_steps": 2}


def run_config(method: str, *overrides: str):
    return tiny_config(method, *OVERRIDES, *overrides)


@functools.cache
def of_the_suite(method: str, *overrides: str) -> list[dict[str, Tensor]]:
    """The weight that every adapted layer multiplies by, after each step of the suite's loop."""
    config = run_config(method, *overrides)
    engine = tiny_engine(config)
    restarts, batches, steps = RunRestarts(engine, config), random_batches(), []
    for step in range(STEPS):
        lr = learning_rate(step, STEPS, LR, config.task.train, config.method.restart)
        tokens = batches.loss_tokens(step)
        for micro in batches.micro_batches(step):
            engine.backward(micro, tokens)
        engine.step(lr, 1.0)
        if restarts.due(step + 1, STEPS):
            restarts.apply()
        steps.append(weights(engine.model))
    return steps


def weights(model) -> dict[str, Tensor]:
    with torch.no_grad():
        return {layer.name: layer.base.double() + layer.delta_weight() for layer in adapted_layers(model)}


class Watch(TrainerCallback):
    """What every step leaves; `stop` ends the training after that step, as a crash would for the next one."""

    def __init__(self, stop: int | None = None):
        self.steps: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.stop = stop

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append(weights(model))
        control.should_training_stop |= state.global_step == self.stop


def rows() -> list[dict[str, list[int]]]:
    """The suite's samples in its order."""
    batches = random_batches()
    every = [micro for step in range(STEPS) for micro in batches.micro_batches(step)]
    return [{"input_ids": ids, "labels": ids} for micro in every for ids in micro.input_ids.tolist()]


def arguments(folder: Path, config, world: int = 1, **options) -> TrainingArguments:
    return TrainingArguments(**_settings(folder, config, world) | options)


def sft_arguments(trl, folder: Path, config):
    return trl.SFTConfig(
        **_settings(folder, config), dataset_kwargs={"skip_prepare_dataset": True}, bf16=False, fp16=False
    )


def _settings(folder: Path, config, world: int = 1) -> dict[str, Any]:
    train = config.task.train
    return dict(
        output_dir=str(folder),
        per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2,
        max_steps=STEPS,
        learning_rate=LR,
        lr_scheduler_type="linear",
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_eps,
        weight_decay=train.weight_decay,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=config.seed,
        optim="adamw_torch",
    )


def trainer_for(
    method: str, folder: Path, *overrides: str, world: int = 1, stop: int | None = None, model=None, **options
):
    config = run_config(method, *overrides)
    torch.manual_seed(0)
    model = model or prepare(load_model(config.model, "fp32")[0], config)
    restart, watch = RestartCallback(EVERY, WARMUP), Watch(stop)
    trainer = Trainer(
        model=model,
        args=arguments(folder, config, world, **options),
        train_dataset=rows(),
        callbacks=[restart, watch],
    )
    return trainer, restart, watch


def assert_as_the_suite(losses, expected) -> None:
    """Within what Adam makes of rounding; a step moves a weight by up to the learning rate, a hundred times as much."""
    for step, (ours, theirs) in enumerate(zip(losses, expected, strict=True)):
        for name, value in theirs.items():
            mine = torch.as_tensor(ours[name])
            torch.testing.assert_close(mine, value, rtol=0, atol=3e-5, msg=lambda m, s=step: f"step {s}: {m}")
