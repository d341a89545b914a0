"""The table of what trains, beside LoRA's count at the same rank."""

import pytest
from tiny_runs import tiny_config

from mora.config import ConfigError
from mora.methods import parameter_lines, parameter_table, prepare, train_rest
from mora.methods.parameters import lora_table
from mora.models.load import load_model


def model_of(method, *overrides):
    config = tiny_config(method, *overrides)
    return prepare(load_model(config.model, "fp32")[0], config)


@pytest.mark.parametrize("wrong", ["q_prj", "embed_tokens"])
@pytest.mark.parametrize("method", ["lora", "mora"])
def test_a_target_that_is_no_linear_module_is_refused(method, wrong):
    with pytest.raises(ConfigError, match=rf"no linear module is called '{wrong}'; there are q_proj, .*, down_proj;"):
        model_of(method, f"method.adapter.target_modules=[v_proj,{wrong}]")


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_a_rank_that_no_module_has_is_refused(method):
    with pytest.raises(
        ConfigError, match=r"^r=49: the largest module, .*, has rank 48 at most; lower r|rank 32 at most"
    ):
        model_of(method, "r=49")


def test_lora_counts_as_peft_makes_it():
    lora = sum(parameter_table(model_of("lora")).values())
    for method in ("lora", "mora", "dora"):
        assert sum(lora_table(model_of(method)).values()) == lora


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_a_line_for_every_module_and_the_total(method):
    model = model_of(method)
    *lines, total = parameter_lines(model, "r=4")
    assert len(lines) == 7
    ours, lora = sum(parameter_table(model).values()), sum(lora_table(model).values())
    assert total.split()[0] == f"{ours:,}"
    assert f"LoRA at r=4 {lora:,} ({100 * (ours / lora - 1):+.2f}%)" in total
    assert ours <= lora, "MoRA's budget is LoRA's"


def test_what_carries_no_adapter_counts_alike_on_both_sides():
    model = model_of("lora")
    train_rest(model)
    assert parameter_lines(model, "r=4")[-1].endswith("(+0.00%)")


def test_without_an_adapter_nothing_stands_beside():
    assert not any("LoRA" in line for line in parameter_lines(model_of("fft"), None))
