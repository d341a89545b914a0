"""RestartCallback in one process: step by step as the suite's loop, resumed, and refused where it could not be right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import KasaConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from trainer_runs import (
    EVERY,
    LR,
    SAVING,
    STEPS,
    WARMUP,
    arguments,
    assert_as_the_suite,
    of_the_suite,
    run_config,
    trainer_for,
)
from transformers import TrainerCallback

from mora import MoraConfig, RestartCallback
from mora.methods import prepare
from mora.models.load import load_model
from mora.restarts.callback import FILE
from mora.restarts.restart import RestartFailed
from mora.restarts.supported import check_supported


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_every_step_leaves_the_weights_that_the_suites_loop_leaves(method, tmp_path):
    trainer, restart, watch = trainer_for(method, tmp_path)
    trainer.train()
    assert_as_the_suite(watch.steps, of_the_suite(method))
    assert [facts["restart"] for facts in restart.history] == [1, 2, 3]
    base = [LR * (1 - t / STEPS) for t in range(STEPS)]
    jagged = [lr * (1 if t < EVERY else min(1, t % EVERY / WARMUP)) for t, lr in enumerate(base)]
    assert watch.rates == pytest.approx(jagged)


@pytest.mark.parametrize(
    ("method", "stop"), [("relora", 8), ("remora", 6)], ids=["right after a restart", "between two"]
)
def test_a_resumed_run_goes_on_as_the_one_that_was_not_cut(method, stop, tmp_path):
    trainer_for(method, tmp_path, stop=stop, **SAVING)[0].train()
    trainer, restart, watch = trainer_for(method, tmp_path, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert_as_the_suite(watch.steps, of_the_suite(method)[stop:])
    assert restart.history[-1]["restart"] == 3


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_the_base_of_another_trainings_checkpoint_is_refused(method, tmp_path):
    ours, others = tmp_path / "ours", tmp_path / "others"
    trainer_for(method, ours, stop=6, **SAVING)[0].train()
    trainer_for(method, others, stop=6, learning_rate=LR / 2, **SAVING)[0].train()
    trainer, _, _ = trainer_for(method, others)
    with pytest.raises(ValueError, match=r"in .*others.* is not what the Trainer has loaded.*resume_from=folder"):
        trainer.train(resume_from_checkpoint=str(ours / "checkpoint-6"))


def test_without_a_warm_up_no_update_is_lost(tmp_path):
    trainer, restart, watch = trainer_for("remora", tmp_path)
    restart._settings = replace(restart._settings, warmup_steps=0)
    trainer.train()
    assert watch.rates == pytest.approx([LR * (1 - t / STEPS) for t in range(STEPS)])


class Overflows(TrainerCallback):
    """A real GradScaler, which skips the updates after which the count of steps is one of `at`."""

    def __init__(self, accelerator, at):
        self.accelerator, self.at = accelerator, at

    def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
        optimizer.scaler = self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        optimizer.__setstate__(optimizer.__getstate__())  # as if it had been made with it
        first = next(p for p in model.parameters() if p.requires_grad)
        first.register_hook(lambda g: g * float("inf") if state.global_step + 1 in self.at else g)


@pytest.mark.parametrize("skipped", [(1, 2), (4,), (5,), (7, 8, 9)])
def test_after_updates_that_overflowed_the_rate_climbs_from_the_restart_all_the_same(skipped, tmp_path):
    trainer, _, watch = trainer_for("remora", tmp_path, fp16=True)
    trainer.add_callback(Overflows(trainer.accelerator, skipped))
    trainer.train()
    expected = []
    for step in range(STEPS):
        base = LR * (1 - (step - sum(s <= step for s in skipped)) / STEPS)  # the schedule waits, as without restarts
        expected.append(base * (1 if step < EVERY else min(1, step % EVERY / WARMUP)))
    assert watch.rates == pytest.approx(expected)


class Kinds(TrainerCallback):
    """The kind of groups after each step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.seen.append(model.peft_config["default"].groups)


@pytest.mark.parametrize(
    ("own", "groups", "expected"),
    [
        ("modulo", ("modulo", "contiguous"), ["modulo", "contiguous", "modulo", "contiguous"]),
        ("contiguous", ("modulo", "contiguous"), ["contiguous", "modulo", "contiguous", "modulo"]),
        ("contiguous", ("modulo", "contiguous", "modulo-contiguous"),
         ["contiguous", "modulo-contiguous", "modulo", "contiguous"]),
        ("contiguous", None, ["contiguous"] * 4),
    ],
)  # fmt: skip
def test_the_kinds_of_groups_begin_at_the_adapters_own(own, groups, expected, tmp_path):
    trainer, restart, _ = trainer_for("remora", tmp_path, f"method.adapter.groups={own}", "method.restart.groups=null")
    restart._settings = replace(restart._settings, groups=groups)
    trainer.add_callback(kinds := Kinds())
    trainer.train()
    assert kinds.seen[::EVERY] == expected  # the steps 1, 5, 9 and 13; restarts follow 4, 8 and 12


BOTH = ("modulo", "contiguous")


@pytest.mark.parametrize(
    ("trained", "resumed", "stop"),
    [
        (BOTH, None, 6),
        (None, BOTH, 6),
        (BOTH, (*BOTH, "modulo-contiguous"), 6),
        (BOTH, ("modulo", "modulo-contiguous"), 2),
    ],
)
def test_other_groups_than_the_checkpoints_are_refused(trained, resumed, stop, tmp_path):
    trainer, restart, _ = trainer_for("remora", tmp_path, stop=stop, **SAVING)
    restart._settings = replace(restart._settings, groups=trained)
    trainer.train()
    trainer, restart, _ = trainer_for("remora", tmp_path, **SAVING)
    restart._settings = replace(restart._settings, groups=resumed)
    with pytest.raises(
        ValueError, match=rf"^groups=.*: .*checkpoint-{stop} was trained with groups=.*resume it with those$"
    ):
        trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("given", [BOTH, BOTH[::-1]])
@pytest.mark.parametrize("now", BOTH)
def test_the_order_of_the_groups_is_the_checkpoints_whatever_the_resumed_adapter_says(given, now, cut):
    own = (f"method.adapter.groups={now}", "method.restart.groups=null")
    trainer, restart, watch = trainer_for("remora", cut, *own, **SAVING)
    restart._settings = replace(restart._settings, groups=given)
    trainer.train(resume_from_checkpoint=True)
    assert_as_the_suite(watch.steps, of_the_suite("remora")[6:])


def test_a_checkpoint_that_does_not_say_its_groups_is_resumed_in_the_order_of_the_argument(cut):
    path = cut / "checkpoint-6" / FILE
    save_file(load_file(path), path, metadata={"count": "1", "step": "6"})
    own = ("method.adapter.groups=contiguous", "method.restart.groups=null")
    trainer, _, watch = trainer_for("remora", cut, *own, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert_as_the_suite(watch.steps, of_the_suite("remora")[6:])


def test_modules_to_save_keep_their_moments(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=EVERY)
    trainer.model.base_model.model.model.norm.requires_grad_(True)
    trainer.train()
    norm = trainer.model.base_model.model.model.norm.weight
    state = trainer.optimizer.optimizer.state
    assert state[norm]["step"] == EVERY
    assert state[norm]["exp_avg"].any()
    assert not any(v.any() for p, s in state.items() if p is not norm for v in s.values())


def test_a_restart_that_does_not_take_ends_the_training(tmp_path, monkeypatch):
    trainer, _, _ = trainer_for("remora", tmp_path)
    monkeypatch.setattr(
        "mora.restarts.optimizer.TorchRestartEngine.assign", lambda self, parameter, value, stale_master: None
    )
    with pytest.raises(RestartFailed, match="still adds to the output"):
        trainer.train()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return run_config("remora")


@pytest.fixture
def base(config):
    return load_model(config.model, "fp32")[0]


@pytest.mark.parametrize(
    ("options", "why"),
    [({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
      "load_best_model_at_end"),
     ({"optim": "adafactor"}, "optim: the state of .*Adafactor is not known"),
     ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2},
      "lr_scheduler_type: the learning rate is set by a ReduceLROnPlateau; .*'linear', 'cosine'")],
    ids=["best", "optimizer", "scheduler"],
)  # fmt: skip
def test_arguments_under_which_a_restart_would_not_be_right_are_refused(options, why, tmp_path):
    from trainer_runs import rows
    from transformers import Trainer

    config = run_config("remora")
    model = prepare(load_model(config.model, "fp32")[0], config)
    args = arguments(tmp_path, config, **options)
    data = rows()
    trainer = Trainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=[RestartCallback(EVERY, WARMUP)]
    )
    with pytest.raises(ValueError, match=why):
        trainer.train()


def test_a_scheduler_that_an_earlier_training_used_is_refused_as_that(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=2)
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=LR)
    trainer.optimizer, trainer.lr_scheduler = optimizer, LambdaLR(optimizer, lambda step: 1.0)
    trainer.train()
    with pytest.raises(
        ValueError, match=r"an earlier train\(\) used it or .* two RestartCallbacks: give every train\(\)"
    ):
        trainer.train()


@pytest.mark.parametrize("launcher", [False, True])
def test_fsdp_is_refused(launcher, base, config, tmp_path, monkeypatch):
    args = arguments(tmp_path, config, fsdp_config={"version": 2})
    if launcher:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch --use_fsdp`
    else:
        args.fsdp = "full_shard"
    with pytest.raises(ValueError, match="under FSDP no rank holds a base weight"):
        check_supported(args, base)


def test_settings_of_fsdp_without_fsdp_are_no_obstacle(config, tmp_path):
    model = prepare(load_model(config.model, "fp32")[0], config)
    assert check_supported(arguments(tmp_path, config, fsdp_config={"version": 2}), model)


@pytest.mark.parametrize(
    ("peft_config", "why"),
    [
        (LoraConfig(use_dora=True), "use_dora"),
        (LoraConfig(kasa_config=KasaConfig()), "kasa_config"),
        (LoraConfig(init_lora_weights="orthogonal"), "init_lora_weights='orthogonal'"),
        (LoraConfig(target_modules=["embed_tokens"]), "Embedding"),
        (MoraConfig(r=2, init_weights=False), "init_weights=False"),
        (None, "expected a PEFT model"),
    ],
    ids=["DoRA", "KaSA", "initialisation", "embedding", "random M", "no adapter"],
)
def test_adapters_whose_restart_is_not_defined_are_refused(peft_config, why, base, config, tmp_path):
    model = base if peft_config is None else get_peft_model(base, peft_config)
    with pytest.raises(ValueError, match=f"RestartCallback: .*{why}"):
        check_supported(arguments(tmp_path, config), model)


def test_layers_on_several_devices_are_refused(config, tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), MoraConfig(r=1, target_modules=["0", "1"]))
    model.base_model.model[1].to("meta")
    with pytest.raises(
        ValueError, match=r"RestartCallback: the adapted layers are on cpu, meta, .* without device_map"
    ):
        check_supported(arguments(tmp_path, config), model)


def test_a_weight_that_two_modules_share_is_refused(config, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

    model = get_peft_model(Tied(), MoraConfig(r=1, target_modules=["a"]))
    with pytest.raises(ValueError, match="a shares its weight with another module"):
        check_supported(arguments(tmp_path, config), model)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"every_steps": 0}, "every_steps=0"), ({"every_steps": 4, "warmup_steps": 4}, "warmup_steps=4"),
     ({"every_steps": 4, "warmup_steps": 1, "merge_rounding": "up"}, "merge_rounding='up'"),
     ({"every_steps": 4, "warmup_steps": 1, "groups": "modulo"}, "groups='modulo': expected None or a sequence of "),
     ({"every_steps": 4, "warmup_steps": 1, "groups": ("modulo", "bogus")}, r"groups=\('modulo', 'bogus'\): expected"),
     ({"every_steps": 4, "warmup_steps": 1, "groups": []}, r"groups=\[\]: expected"),
     ({"every_steps": 4, "warmup_steps": 1, "groups": 2}, "groups=2: expected")],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(options, field):
    with pytest.raises(ValueError, match=field):
        RestartCallback(**options)
