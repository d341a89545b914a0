"""method=peft: a method of PEFT's from its adapter_config.json, with no code here that knows it."""

import json

import pytest
import torch
from peft import BOFTConfig, C3AConfig, IA3Config, OFTConfig, PeftModel, VeraConfig
from tiny_runs import TINY, random_batches, train_step

from mora.config import ConfigError, compose
from mora.config.load import load
from mora.config.run_id import run_id
from mora.methods import merged, parameter_groups, parameter_lines, prepare
from mora.models.load import load_model
from mora.planner import counts
from mora.suite.plan import name_of
from mora.train.engine import TorchEngine
from mora.train.save_model import save_model

LINEAR = ["q_proj", "v_proj", "up_proj"]
METHODS = {
    "VERA": VeraConfig(r=8, target_modules=LINEAR, save_projection=True),
    "BOFT": BOFTConfig(boft_block_size=4, target_modules=LINEAR),
    "C3A": C3AConfig(block_size=16, target_modules=LINEAR),
    "OFT": OFTConfig(oft_block_size=8, target_modules=LINEAR),
    "IA3": IA3Config(target_modules=LINEAR, feedforward_modules=["up_proj"]),
}


@pytest.fixture
def written(tmp_path):
    """The run of a file with these settings, and its path."""

    def write(settings, *overrides):
        path = tmp_path / "adapter_config.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        return compose([*TINY, "method=peft", f"method.config={path}", *overrides])

    return write


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_has_written_trains_merges_and_is_loaded(kind, written, tmp_path):
    METHODS[kind].save_pretrained(tmp_path)
    config = written((tmp_path / "adapter_config.json").read_text())
    base, tokenizer = load_model(config.model, "fp32")
    before = {name: p.clone() for name, p in base.named_parameters()}
    model = prepare(base, config)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert model.peft_config["default"].peft_type.value == kind
    assert trainable
    assert not {name.replace(".base_layer", "").removeprefix("base_model.model.") for name in trainable} & before.keys()
    engine = TorchEngine(model, config.task.train, torch.float32, groups=parameter_groups(model, config))
    batches = random_batches()
    losses = [train_step(engine, batches, step=0, lr=1e-2) for _ in range(8)]
    assert losses[-1] < losses[0] - 1e-3
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with merged(model, torch.float32):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-4)
        assert any("in all, " in line and "LoRA" not in line for line in parameter_lines(model, config.rank_text))
        save_model(model, tokenizer, config, tmp_path)
        loaded = PeftModel.from_pretrained(load_model(config.model, "fp32")[0], tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected)


def test_a_run_is_told_by_the_content_of_its_file(written, tmp_path):
    first = written({"peft_type": "VERA", "r": 8})
    (tmp_path / "elsewhere.json").write_text('{"r": 8, "peft_type": "VERA", "base_model_name_or_path": "some/model"}')
    same = compose([*TINY, "method=peft", f"method.config={tmp_path}/elsewhere.json"])
    assert run_id(first).startswith("uuid-peft_vera-lr")
    assert run_id(same) == run_id(first) == name_of(first)
    begun = first.model_dump(mode="json")
    assert run_id(written({"peft_type": "VERA", "r": 16})) != run_id(first)
    assert run_id(load(begun)) == run_id(first)  # what it began with, whatever the file says now
    assert run_id(compose([*TINY, "method=peft", f"method.config={tmp_path}"])) == run_id(
        written({"peft_type": "VERA", "r": 16})
    )


def test_other_runs_have_the_names_that_they_had():
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke", "lr=1e-2"])
    assert run_id(config) == "uuid-mora-r8-lr1e-2-s0-792a007151"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", "has no peft_type"),
        ({"r": 8}, "has no peft_type"),
    ],
)
def test_a_file_that_is_none_is_refused_before_anything_is_loaded(settings, said, written):
    with pytest.raises(ConfigError, match=said):
        written(settings)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "method.config is missing: method peft needs the adapter_config.json"),
        (["method.config=/none/such.json"], "method.config='/none/such.json': there is no such file"),
    ],
)
def test_method_peft_without_a_readable_file_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        compose([*TINY, "method=peft", *overrides])


def test_what_would_be_ignored_is_refused(written):
    with pytest.raises(
        ConfigError, match=r"r=8: method peft takes its size from method\.config, or from .*; leave r out"
    ):
        written({"peft_type": "VERA"}, "r=8")
    with pytest.raises(ConfigError, match="has no adapter whose update a restart knows"):
        load(_with_restart(written({"peft_type": "VERA"}).model_dump(mode="json")))


def _with_restart(values):
    restart = compose([*TINY, "method=relora", "r=4", "method.restart.every_steps=10"]).method.restart
    values["method"]["restart"] = restart.model_dump(mode="json")
    return values


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "VEERA"}, "peft_type='VEERA': expected one of ADALORA, "),
        ({"peft_type": "VERA", "rank": 8}, "VERA has no field 'rank'; there are "),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "PROMPT_TUNING adds to the prompt"),
        ({"peft_type": "C3A", "block_size": 7}, "C3A refuses these settings on this model"),
        ({"peft_type": "VERA", "target_modules": ["q_proj", "no_such"]}, "VERA finds no module called 'no_such'"),
        ({"peft_type": "VERA", "target_modules": ["no_such"]}, "VERA refuses these settings on this model .*No layers"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_would_refuse_or_pass_over_is_said(settings, said, written):
    config = written(settings)
    with pytest.raises(ConfigError, match=said):
        prepare(load_model(config.model, "fp32")[0], config)


def test_its_cost_is_not_known_and_nothing_is_made_up(written):
    config = written({"peft_type": "VERA", "target_modules": ["no_such"]})
    for count in (counts.trainable, counts.frozen_adapter, lambda c: counts.flops_per_token(c, 10)):
        with pytest.raises(ConfigError, match="the cost of an adapter of method peft is unknown"):
            count(config)
