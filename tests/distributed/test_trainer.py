"""RestartCallback on two CPU ranks, under DDP and DeepSpeed: step by step as the suite's loop in one process."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from ranks import WORLD, on_ranks
from trainer_runs import STEPS, assert_as_the_suite, of_the_suite, run_config, trainer_for, weights

from mora import restore_base
from mora.models.load import load_model

PARALLEL = ("ddp", "zero1", "zero2", "zero3")


def deepspeed_settings(stage):
    return {
        "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def trained(method, parallel, folder, stop=None, resume=False, bf16=False):
    """On each rank: the whole weights of each adapted layer after each step, and the rates."""
    options = {"save_strategy": "steps", "save_steps": 6} if stop or resume else {}
    if parallel != "ddp":
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles an extension first
        options["deepspeed"] = deepspeed_settings(int(parallel[-1])) | {"bf16": {"enabled": bf16}}
        options["bf16"] = bf16
    trainer, restart, watch = trainer_for(method, Path(folder), world=WORLD, stop=stop, **options)
    if parallel == "zero3":
        _gathered(trainer, watch)
    trainer.train(resume_from_checkpoint=resume or None)
    if stop:
        trainer.save_model(f"{folder}/last")
    steps = [
        {name: value.numpy() for name, value in step.items()} for step in watch.steps
    ]  # tensors would need their process
    return steps, watch.rates, [facts["restart"] for facts in restart.history]


def _gathered(trainer, watch):
    import deepspeed

    inner = watch.on_step_end

    def on_step_end(*args, model, **kwargs):
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            inner(*args, model=model, **kwargs)

    watch.on_step_end = on_step_end


@pytest.mark.parametrize(
    ("method", "parallel"), [("relora", "ddp"), ("relora", "zero3"), *(("remora", name) for name in PARALLEL)]
)
def test_every_step_leaves_on_every_rank_what_the_suites_loop_leaves(method, parallel, tmp_path):
    for steps, _, restarts in on_ranks(trained, method, parallel, str(tmp_path)):
        assert_as_the_suite(steps, of_the_suite(method))
        assert restarts == [1, 2, 3]


@pytest.mark.parametrize("parallel", ["ddp", "zero3"])
def test_a_run_that_was_cut_is_saved_and_goes_on_with_the_merged_base(parallel, tmp_path):
    on_ranks(trained, "remora", parallel, str(tmp_path), 6)
    model = PeftModel.from_pretrained(load_model(run_config("remora").model, "fp32")[0], tmp_path / "last")
    with pytest.raises(ValueError, match="saved after 1 restarts"):
        model.base_model.check_base()
    restore_base(model, tmp_path / "last")
    model.base_model.check_base()
    assert_as_the_suite([weights(model)], of_the_suite("remora")[5:6])
    for steps, _, restarts in on_ranks(trained, "remora", parallel, str(tmp_path), None, True):
        assert len(steps) == STEPS - 6
        assert_as_the_suite(steps, of_the_suite("remora")[6:])
        assert restarts == [2, 3]


@pytest.mark.parametrize("parallel", ["zero1", "zero3"])
def test_in_bf16_the_masters_are_renewed(parallel, tmp_path):
    (steps, _, restarts), (other, _, _) = on_ranks(trained, "remora", parallel, str(tmp_path), None, False, True)
    assert restarts == [1, 2, 3]  # each of which has checked the masters
    first, last = of_the_suite("remora")[0], of_the_suite("remora")[-1]
    for name, value in steps[-1].items():
        assert (value == other[-1][name]).all()
        moved = (last[name] - first[name]).norm()
        assert (torch.from_numpy(value) - last[name]).norm() < 0.5 * moved
