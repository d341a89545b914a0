"""What is saved of a model whose base restarts have changed, and that it can be used again."""

from __future__ import annotations

import copy
import errno
import shutil
import warnings

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations
from trainer_runs import SAVING, assert_as_the_suite, of_the_suite, run_config, trainer_for, weights

from mora import MoraConfig, restore_base
from mora.adapter import merged_base
from mora.adapter.merged_base import MergedBase
from mora.adapter.model import RESTARTS
from mora.models.load import load_model
from mora.restarts.callback import FILE


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    base = MergedBase(count=1, step=4, shadow={"q_proj": torch.ones(2, 2)})
    base.save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(whole[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(merged_base, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        base.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == whole


def test_the_merged_base_of_a_checkpoint_can_be_put_under_its_adapter(tmp_path):
    trainer, _, watch = trainer_for("remora", tmp_path, save_strategy="steps", save_steps=6)
    trainer.train()
    base = load_model(run_config("remora").model, "fp32")[0]
    model = PeftModel.from_pretrained(base, tmp_path / "checkpoint-6")
    best = (tmp_path / "checkpoint-6").rename(tmp_path / "best")
    restore_base(model, best)
    assert_as_the_suite([weights(model)], [watch.steps[5]])
    with pytest.raises(ValueError, match=r"which this model lacks: give the PEFT model .*PeftModel\.from_pretrained"):
        restore_base(nn.Linear(2, 2), best)
    (best / FILE).unlink()
    with pytest.raises(
        ValueError, match=r"best/restarts\.safetensors is missing.*: name a checkpoint that was written"
    ):
        restore_base(model, best)


def test_the_card_says_which_base_an_adapter_fits_after_a_restart(cut):
    cards = {step: (cut / f"checkpoint-{step}" / "README.md").read_text() for step in (2, 4, 6)}
    assert ["**only that merged base**" in card for card in cards.values()] == [False, True, True]


@pytest.mark.parametrize("method", ["relora", "remora"])
@pytest.mark.parametrize("save", [lambda t, f: t.save_model(str(f)), lambda t, f: t.model.save_pretrained(f)])
def test_what_is_saved_after_training_can_be_put_under_its_adapter(save, method, tmp_path):
    trainer, _, watch = trainer_for(method, tmp_path, stop=6)
    trainer.train()
    save(trainer, tmp_path / "last")
    assert_as_the_suite([weights(under_its_adapter(tmp_path / "last", method))], [watch.steps[5]])


def under_its_adapter(folder, method="remora"):
    """The weights of the original model with that adapter and with the merged base that lies beside it."""
    model = PeftModel.from_pretrained(load_model(run_config(method).model, "fp32")[0], folder)
    restore_base(model, folder)
    return model


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_a_second_training_of_a_model_goes_on_from_the_base_of_the_first(method, tmp_path):
    first, _, _ = trainer_for(method, tmp_path / "first", stop=6)
    first.train()
    again, restart, watch = trainer_for(method, tmp_path / "again", stop=6, model=first.model, **SAVING)
    again.train()
    assert [facts["restart"] for facts in restart.history] == [2]
    for step in (2, 4, 6):
        folder = tmp_path / "again" / f"checkpoint-{step}"
        assert_as_the_suite([weights(under_its_adapter(folder, method))], [watch.steps[step - 1]])
    resumed, _, later = trainer_for(method, tmp_path / "again", stop=6, **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-2"))
    assert_as_the_suite(later.steps, watch.steps[2:])


def test_a_copy_saves_its_own_adapter_with_the_base_and_a_model_can_be_pickled(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    copied = copy.deepcopy(trainer.model)
    for layer in copied.modules():
        if hasattr(layer, "mora_M"):
            layer.mora_M["default"].weight.data.fill_(7)
    copied.save_pretrained(tmp_path / "copy")
    assert_as_the_suite([weights(under_its_adapter(tmp_path / "copy"))], [weights(copied)])
    torch.save(trainer.model, tmp_path / "model.pt")
    assert_as_the_suite([weights(torch.load(tmp_path / "model.pt", weights_only=False))], [weights(trainer.model)])


def test_every_adapter_that_is_saved_after_restarts_has_the_base_beside_it(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # none of these has another base than the model's own
        trainer.model.add_adapter("fresh", MoraConfig(target_modules=["q_proj"], operator="sharing"))
        trainer.model.add_weighted_adapter(["default"], [0.5], "mixed")
    trainer.model.save_pretrained(tmp_path / "all")
    trainer.model.save_pretrained(tmp_path / "one", selected_adapters=["mixed"])
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.glob(f"*/**/{FILE}"))
    assert found == ["all", "all/fresh", "all/mixed", "one/mixed"]
    assert all(MoraConfig.from_pretrained(tmp_path / folder).restarted for folder in found)
    assert not any(
        config.restarted for config in trainer.model.peft_config.values()
    )  # of an object that may serve again


def test_a_checkpoint_that_is_saved_by_hand_holds_the_base(tmp_path):
    trainer, _, watch = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    trainer.save_model(str(tmp_path / "checkpoint-6"))
    assert_as_the_suite([weights(under_its_adapter(tmp_path / "checkpoint-6"))], [watch.steps[5]])


def test_an_adapter_with_a_name_has_the_base_in_its_own_folder_once_and_is_resumed(tmp_path):
    def named():
        base = load_model(run_config("remora").model, "fp32")[0]
        return get_peft_model(
            base, MoraConfig(r=4, target_modules="all-linear", operator="sharing"), adapter_name="own"
        )

    trainer_for("remora", tmp_path, stop=6, model=named(), **(SAVING | {"save_steps": 6}))[0].train()
    assert [path.parent.name for path in tmp_path.glob(f"**/{FILE}")] == ["own"]
    trainer, _, watch = trainer_for("remora", tmp_path, model=named(), **(SAVING | {"save_steps": 6}))
    trainer.train(resume_from_checkpoint=True)
    assert_as_the_suite(watch.steps, of_the_suite("remora")[6:])


def test_a_restored_model_keeps_its_base_when_it_saves(tmp_path):
    trainer, _, watch = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    under_its_adapter(tmp_path / "last").save_pretrained(tmp_path / "again")
    assert_as_the_suite([weights(under_its_adapter(tmp_path / "again"))], [watch.steps[5]])


def test_before_a_restart_an_adapter_is_saved_alone(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    assert not (tmp_path / "last" / FILE).exists()
    assert not MoraConfig.from_pretrained(tmp_path / "last").restarted


def test_a_second_training_writes_the_file_again_where_the_first_ones_was_removed(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=2, **SAVING)
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-2")
    trainer_for("remora", tmp_path, stop=2, model=trainer.model, **SAVING)[0].train()
    assert (tmp_path / "checkpoint-2" / FILE).is_file()


def test_an_adapter_whose_base_is_another_says_so_when_it_is_loaded(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    trainer.save_model(str(tmp_path / "last"))
    base = load_model(run_config("remora").model, "fp32")[0]
    with pytest.warns(UserWarning, match=r"restarts merged .*call mora\.restore_base\(model, folder\)"):
        PeftModel.from_pretrained(base, tmp_path / "last")


def one_step(model):
    return model.train()(input_ids=torch.tensor([[3, 4]]))


def test_a_restarted_adapter_is_not_trained_on_without_its_base(cut):
    trainer, restart, watch = trainer_for("remora", cut)
    trainer.remove_callback(restart)
    with pytest.raises(
        ValueError, match=r"adapter 'default' were saved after 1 restarts, .* this model has 0: .* Call mora"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert not watch.steps
    restore_base(trainer.model, cut / "checkpoint-6")
    one_step(trainer.model)


def test_a_callback_that_resumes_nothing_restores_no_base(cut):
    base = trainer_for("remora", cut)[0].model.unload()
    model = PeftModel.from_pretrained(base, cut / "checkpoint-6", is_trainable=True)
    with pytest.raises(ValueError, match=r"saved after 1 restarts, .* this model has 0"):
        trainer_for("remora", cut, model=model)[0].train()
    restore_base(model, cut / "checkpoint-6")
    trainer_for("remora", cut, model=model)[0].train()
    one_step(model)  # after restarts of its own, with which the loaded weights have nothing to do


def test_the_weights_of_another_life_are_not_trained_on_and_the_right_ones_are(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=10, **SAVING)
    trainer.train()
    model = trainer.model
    for checkpoint, restarts in (
        ("checkpoint-8", None),
        ("checkpoint-6", 1),
        ("checkpoint-2", 0),
        ("checkpoint-8", None),
    ):
        model.load_adapter(tmp_path / checkpoint, "default")
        if restarts is None:  # of the same life as the base
            one_step(model)
        else:
            with pytest.raises(ValueError, match=f"saved after {restarts} restarts, .* this model has 2"):
                one_step(model)


def test_an_adapter_of_another_base_hinders_no_other_one(cut):
    trainer, _, _ = trainer_for("remora", cut)
    model = trainer.model
    model.load_adapter(cut / "checkpoint-6", "other", is_trainable=True)
    one_step(model)
    model.set_adapter("other")
    with pytest.raises(ValueError, match="adapter 'other' were saved after 1 restarts"):
        one_step(model)
    model.delete_adapter("other")
    model.add_adapter("other", MoraConfig(r=2, target_modules=["q_proj"]))
    model.set_adapter("other")
    one_step(model)


def test_only_the_saved_weights_tell_the_restarts(cut):
    """Tools that walk over the model's own state dict find parameters and buffers alone."""
    trainer, _, _ = trainer_for("remora", cut)
    trainer.train(resume_from_checkpoint=True)
    model = trainer.model
    assert set(model.state_dict()) <= {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert get_peft_model_state_dict(model)[RESTARTS] == 3


def test_a_whole_state_dict_brings_its_base_and_trains_on(tmp_path):
    trainer, _, _ = trainer_for("remora", tmp_path, stop=6)
    trainer.train()
    other, _, _ = trainer_for("remora", tmp_path)
    other.model.load_state_dict(trainer.model.state_dict())
    one_step(other.model)


def test_a_checkpoint_without_the_merged_base_is_refused(cut):
    (cut / "checkpoint-6" / FILE).unlink()
    with pytest.raises(ValueError, match=r"restarts\.safetensors is missing"):
        trainer_for("remora", cut, **SAVING)[0].train(resume_from_checkpoint=True)
    moved = (cut / "checkpoint-6").rename(cut / "elsewhere")
    (cut / "checkpoint-4" / FILE).rename(moved / FILE)
    trainer, restart, _ = trainer_for("remora", cut, **SAVING)
    restart._resume_from = moved
    with pytest.raises(ValueError, match="is of step 4, the Trainer resumes step 6: name the checkpoint of step 6"):
        trainer.train(resume_from_checkpoint=str(moved))


@pytest.mark.parametrize("size", [0, 6, 500, -40])
def test_a_cut_file_is_named(size, cut):
    path = cut / "checkpoint-6" / FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"^{path} cannot be read, it is cut or damaged: .*; copy it again, or use"):
        trainer_for("remora", cut, **SAVING)[0].train(resume_from_checkpoint=True)


def test_a_file_of_another_kind_is_named(tmp_path):
    save_file({"q_proj": torch.ones(2, 2)}, tmp_path / FILE)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path / FILE} does not say its count: RestartCallback did not write it"
    ):
        restore_base(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize("order", [["plain", "restarted"], ["restarted", "plain"]])
def test_a_sum_with_an_adapter_that_needs_the_merged_base_needs_it(order):
    model = get_peft_model(
        load_model(run_config("remora").model, "fp32")[0],
        MoraConfig(r=4, target_modules="all-linear", operator="sharing"),
        adapter_name="plain",
    )
    model.add_adapter("restarted", MoraConfig(r=4, target_modules="all-linear", operator="sharing"))
    model.peft_config["restarted"].restarted = True
    with pytest.warns(UserWarning, match="for a new adapter set restarted=False"):
        model.add_weighted_adapter(order, [0.5, 0.5], "sum")
    assert model.peft_config["sum"].restarted


def two_layers(width: int = 6, targets=("0", "1")) -> PeftModel:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, width))
    config = MoraConfig(r=1, operator="sharing", target_modules=list(targets), init_weights=False)
    return get_peft_model(base, config)


def offloaded() -> PeftModel:
    model = two_layers()
    cpu_offload(model.base_model.model[1], torch.device("cpu"))
    return model


def merged() -> PeftModel:
    model = two_layers()
    model.base_model.model[1].merge()
    return model


def parametrised() -> PeftModel:
    model = two_layers()
    parametrizations.weight_norm(model.base_model.model[1].base_layer)
    return model


def quantised() -> PeftModel:
    model = two_layers()
    base = model.base_model.model[1].base_layer
    base.weight = nn.Parameter(base.weight.detach().to(torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 4)),
            "which this model lacks: give the PEFT model of the base that was trained",
        ),
        (lambda: two_layers(targets=["0"]), "which has no adapter in this model: give the PEFT model of the base"),
        (lambda: two_layers(width=8), r"of shape \(6, 4\), which is \(8, 4\) in this model: give the PEFT model"),
        (
            offloaded,
            "not in memory .*: load the base in memory as a whole, without device_map or DeepSpeed, restore it, and",
        ),
        (merged, r"into which this model has merged \['default'\]: unmerge_adapter\(\) first"),
        (parametrised, "whose base, a ParametrizedLinear, has no weight of its own to write"),
        (quantised, "whose weight here is a Parameter of torch.int8: load the base in bf16, fp16 or fp32"),
    ],
    ids=["none", "no-adapter", "width", "offloaded", "merged", "parametrised", "quantised"],
)
def test_a_base_that_cannot_be_written_as_a_whole_is_left_as_it_is(make, why, tmp_path):
    first, second = "base_model.model.0", "base_model.model.1"
    MergedBase(1, 2, {first: torch.full((4, 4), 7.0), second: torch.full((6, 4), 7.0)}).save(tmp_path)
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"restarts\.safetensors holds base_model\.model\.[01].*{why}"):
        restore_base(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if not tensor.is_meta)
    assert not hasattr(model, "base_model") or model.base_model.merged_base is None
    restored = two_layers()
    restore_base(restored, tmp_path)
    assert all((layer.base_layer.weight == 7).all() for layer in restored.base_model.model)
