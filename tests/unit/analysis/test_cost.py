"""The plan's numbers against real models, counted FLOPs and what was measured on a GPU."""

import json
import math

import pytest
import torch
from peft import get_peft_model
from tiny_runs import tiny_config
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from mora.adapter import MoraConfig, operators
from mora.adapter.model import MAX_GROUP, resolve_operator
from mora.analysis import cost, shapes
from mora.config import ConfigError, compose
from mora.config.compose import CONFIG_DIR
from mora.data.batches import Batch
from mora.methods import parameter_table, prepare
from mora.suite import experiment as experiments
from mora.suite import launch, plan
from mora.train.engine import token_losses
from mora.train.engines import checkpoint_layers
from mora.train.model import load_model

METHODS = ["fft", "lora", "lora_plus", "asylora", "dora", "mora"]
BENCH = sorted(cost.BENCH.glob("step-*.json"))


def paper(method, *overrides):
    rank = [] if method == "fft" or any(o.startswith("r=") for o in overrides) else ["r=8"]
    return compose(["task=biomed", f"method={method}", *rank, *overrides])


@pytest.mark.parametrize("method", [*METHODS, "relora", "remora"])
def test_trainable_parameters_are_those_of_the_model(method):
    config = tiny_config(method)
    model = prepare(load_model(config.model, "fp32")[0], config)
    assert cost.trainable(config) == sum(parameter_table(model).values())


def test_trainable_parameters_of_pretraining_are_those_of_the_model():
    config = compose(["task=c4", "scale=smoke", "method=mora", "r=8"])
    model = prepare(load_model(config.model, "fp32")[0], config)
    assert cost.trainable(config) == sum(parameter_table(model).values())


@pytest.mark.parametrize("name", ["llama2_7b", "smollm2_135m"])
@pytest.mark.parametrize("r", [1, 8, 32, 256])
def test_the_large_models_are_right_without_their_weights(name, r):
    config = paper("mora", f"r={r}", f"model={name}")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shapes.SHAPES[name]))
        assert shapes.shape_of(config.model).parameters == sum(p.numel() for p in model.parameters())
        width = model.config.hidden_size
        adapted = get_peft_model(model, MoraConfig(r=r, target_modules="all-linear"))
    assert cost.trainable(config) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert cost.mora_operator(config, width) == resolve_operator(MoraConfig(r=r, operator="auto"), width)
    assert cost.MAX_GROUP == MAX_GROUP


@pytest.mark.parametrize("rounding", ["floor", "official"])
@pytest.mark.parametrize("even", [False, True])
def test_the_side_of_m_is_the_adapters(rounding, even):
    for k, d, r in [(4096, 11008, 8), (576, 192, 1), (11008, 4096, 256), (3, 5, 1)]:
        assert cost.square_size(k, d, r, rounding, even) == operators.square_size(k, d, r, rounding, even)


SHAPED = [("fft", []), ("lora", []), ("mora", ["operator=sharing"]), ("mora", ["operator=decouple"])]


@pytest.mark.parametrize(("method", "more"), SHAPED)
def test_flops_are_those_that_torch_counts(method, more):
    config = tiny_config(method, *(f"method.adapter.{o}" for o in more))
    model = prepare(load_model(config.model, "fp32")[0], config)
    length = 8
    tokens = torch.randint(3, 100, (4, length))
    model.enable_input_require_grads()
    with FlopCounterMode(display=False) as counter:
        token_losses(model, Batch(tokens, tokens)).sum().backward()
    counted = counter.get_total_flops()  # the last token of a sequence has no loss, so no logits
    assert cost.flops_per_token(config, length) * tokens.numel() == pytest.approx(counted, rel=0.08)


@pytest.mark.parametrize("path", BENCH, ids=lambda p: p.stem)
def test_memory_is_within_15_percent_of_what_was_measured(path):
    checked = 0
    for scenario in json.loads(path.read_text())["scenarios"]:
        for case in scenario["cases"]:
            if not case["r"] or not case["activation_bytes"] or case["stock"] or scenario["shape"] not in shapes.SHAPES:
                continue
            operator = [f"method.adapter.operator={case['operator']}"] if case["method"] == "mora" else []
            overrides = [f"model={scenario['shape']}", f"r={case['r']}", "method.adapter.dropout=0", *operator]
            if case.get("checkpointed"):
                overrides.append("hardware.gradient_checkpointing=true")
            config = paper(case["method"], *overrides)
            needs = cost.memory(config, scenario["length"], scenario["batch_size"], fused=False, chunked_loss=False)
            predicted = needs.activations + needs.logits + 2 * cost.trainable(config)
            assert cost.trainable(config) == case["trainable"]
            assert predicted == pytest.approx(case["activation_bytes"], rel=0.15), (scenario["shape"], case["name"])
            checked += 1
    assert checked


def test_zero_divides_what_its_stage_divides():
    whole = cost.memory(paper("fft", "hardware=gpu8", "hardware.parallel=ddp"), 2048, 1)
    split = cost.memory(paper("fft", "hardware=gpu8", "hardware.parallel=zero3"), 2048, 1)
    n = shapes.shape_of(paper("fft").model).parameters
    assert whole.weights + whole.gradients + whole.optimizer == 20 * n
    assert split.weights + split.gradients + split.optimizer == 20 * n / 8
    assert split.activations == whole.activations
    assert cost.fitting_micro_batch(paper("fft", "hardware=gpu8", "hardware.parallel=ddp"), 2048) is None
    assert cost.fitting_micro_batch(paper("fft", "hardware=gpu8"), 2048) in (1, 2, 4, 8, 16)


def test_a_restarting_method_keeps_an_fp32_copy_of_the_layers_on_the_cpu():
    shape = shapes.shape_of(paper("relora").model)
    assert cost.memory(paper("relora"), 2048, 1).shadow == 4 * shape.in_layers
    assert cost.memory(paper("lora"), 2048, 1).shadow == 0


@pytest.mark.parametrize(("task", "steps"), [("tulu2", 5093), ("metamath", 9252), ("biomed", 5000), ("finance", 5000)])
def test_steps_follow_from_the_size_of_the_papers_sets(task, steps):
    config = compose([f"task={task}", "method=fft"])
    assert cost.length_of(config).steps == steps
    result = {"data": {"report": {"sequences": 128_000, "sequence_tokens": 12_800_000}}}
    known = cost.length_of(config, [result])
    assert known.steps == math.ceil(config.task.train.epochs * 128_000 / 128)
    assert (known.tokens, known.at_most) == (known.steps * 128 * 100, False)


def test_the_speed_is_measured_where_it_was_and_stated_where_it_was_not(monkeypatch):
    scenario = {"shape": "llama2_7b", "batch_size": 2, "length": 100}
    case = {"method": "lora", "operator": "auto", "r": 8, "ms": [10.0], "stock": False, "form": "auto"}
    monkeypatch.setattr(cost, "_measured", lambda: (("GPU", scenario, case),))
    assert cost.rate_of(paper("lora")).flops == pytest.approx(cost.flops_per_token(paper("lora"), 100) * 200 / 0.01)
    assert cost.rate_of(paper("lora")).source == "measured, GPU, r=8"
    assert cost.rate_of(paper("mora")).source.startswith("assumed, 40%")


def test_a_plan_names_every_missing_run_and_adds_them_up(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    grids = [grid for row in experiments.grids(experiments.load("table1"), "paper") for grid in row]
    text = plan.text(grids, "gpu8")
    assert "128 runs, " in text
    assert len([line for line in text.splitlines() if "-s0-" in line]) == 128
    assert "Several GPUs are extrapolated" in text


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIG_DIR / "hardware").glob("*.yaml")))
def test_a_plan_can_be_made_for_every_hardware(name, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    grid = experiments.grids(experiments.load("table3"), "paper")[0][0]
    assert f"training at most on {name} " in plan.text([grid], name)


def test_unknown_hardware_is_refused_in_one_line():
    grid = experiments.grids(experiments.load("table3"), "paper")[0][0]
    with pytest.raises(ConfigError, match="hardware/nothing"):
        plan.text([grid], "nothing")


def kept_for_backward(config, batch, length):
    """Bytes that autograd keeps of a step without the weights, each storage once. Plain layers, the loss in chunks."""
    model = prepare(load_model(config.model, "fp32")[0], config).train()
    if config.hardware.gradient_checkpointing:
        checkpoint_layers(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(3, 100, (batch, length))
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = token_losses(model, Batch(ids, ids)).sum()
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)


@pytest.mark.parametrize("on", ["false", "true"])
@pytest.mark.parametrize("dropout", [0, 0.05])
@pytest.mark.parametrize("method", ["lora", "mora"])
def test_activations_are_what_autograd_keeps(method, dropout, on):
    more = [f"method.adapter.dropout={dropout}", f"hardware.gradient_checkpointing={on}"]
    if method == "mora" and dropout:
        pytest.skip("on a CPU MoRA's dropout makes a masked copy, which its kernels on a GPU do not")
    config = tiny_config(method, *more, "model.architecture.num_hidden_layers=4")
    found = kept_for_backward(config, 4, 64)
    planned = cost.memory(config, 64, 4, fused=False).activations
    shape = shapes.shape_of(config.model)
    if on == "true":  # of the layers' inputs alone: the layer that is computed again comes later
        planned = 4 * 4 * 64 * shape.hidden * (shape.layers + 2)
    assert found == pytest.approx(planned, rel=0.25)
