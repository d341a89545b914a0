"""Parameters and FLOPs that are counted from shapes against real models."""

import itertools

import pytest
import torch
from paper_runs import paper
from peft import get_peft_model
from tiny_runs import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from mora.adapter import MoraConfig, gather, operators
from mora.adapter.layer import MoraLayer
from mora.config.cached_composition import compose_cached as compose
from mora.methods import parameter_table, prepare
from mora.models import shapes
from mora.models.load import load_model
from mora.planner import counts
from mora.sizes import auto_operator, r_hat_for

METHODS = ["fft", "lora", "lora_plus", "asylora", "dora", "mora"]


@pytest.mark.parametrize("method", [*METHODS, "relora", "remora"])
def test_trainable_parameters_are_those_of_the_model(method):
    config = tiny_config(method)
    model = prepare(load_model(config.model, "fp32")[0], config)
    assert counts.trainable(config) == sum(parameter_table(model).values())


@pytest.mark.parametrize("frozen", [False, True])
def test_an_adapter_weighs_what_trains_and_a_frozen_a(frozen):
    config = tiny_config("asylora", f"method.adapter.freeze_a={frozen}")
    base = load_model(config.model, "fp32")[0]
    without = base.num_parameters()
    added = prepare(base, config).base_model.num_parameters() - without
    assert counts.trainable(config) + counts.frozen_adapter(config) == added
    assert (counts.frozen_adapter(config) > 0) == frozen


def test_trainable_parameters_of_pretraining_are_those_of_the_model():
    config = compose(["task=c4", "scale=smoke", "method=mora", "r=8"])
    model = prepare(load_model(config.model, "fp32")[0], config)
    assert counts.trainable(config) == sum(parameter_table(model).values())


@pytest.mark.parametrize("name", ["llama2_7b", "smollm2_135m"])
@pytest.mark.parametrize("r", [1, 8, 32, 256])
def test_the_large_models_are_right_without_their_weights(name, r):
    config = paper("mora", f"r={r}", f"model={name}")
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config.model.shape))
        assert shapes.shape_of(config.model).parameters == sum(p.numel() for p in model.parameters())
        width = model.config.hidden_size
        adapted = get_peft_model(model, MoraConfig(r=r, operator="auto", target_modules="all-linear"))
    assert counts.trainable(config) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counts.operator_of(config) == adapted.peft_config["default"].operator == auto_operator(width, r)


@pytest.mark.parametrize("operator", sorted(operators.OPERATORS))
@pytest.mark.parametrize("overflow", ["drop", "fold"])
def test_the_square_and_the_inputs_that_it_ignores_are_the_adapters(operator, overflow):
    """SmolLM2 has modules that are wider, narrower and as wide as their inputs."""
    chosen = [f"method.adapter.operator={operator}", f"method.adapter.overflow={overflow}"]
    config = paper("mora", "r=8", "model=smollm2_135m", *chosen)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config.model.shape))
        settings = MoraConfig(r=8, operator=operator, overflow=overflow, target_modules="all-linear")
        layers = [m for m in get_peft_model(model, settings).modules() if isinstance(m, MoraLayer)]
    made = [layer.operator["default"] for layer in layers]
    square = counts.square(config)
    ignored = sum(op.ignored_inputs() for op in made) / sum(op.in_features for op in made)
    assert square == (made[0].r_hat, made[0].in_features, pytest.approx(ignored))
    assert (ignored > 0) == (operator == "truncation" or (operator in ("decouple", "rotation") and overflow == "drop"))


def test_another_method_has_no_square():
    assert counts.square(paper("lora", "r=8")) is None


SHAPED = [("fft", []), ("lora", []), ("mora", ["operator=sharing"]), ("mora", ["operator=decouple"])]


@pytest.mark.parametrize(("method", "more"), SHAPED)
def test_flops_are_those_that_torch_counts(method, more):
    config = tiny_config(method, *(f"method.adapter.{o}" for o in more))
    model = prepare(load_model(config.model, "fp32")[0], config)
    length = 8
    tokens = torch.randint(3, 100, (4, length))
    model.enable_input_require_grads()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):  # of another the backward is not counted
        model(input_ids=tokens, use_cache=False).logits.sum().backward()  # whole: in chunks they are made twice
    counted = counter.get_total_flops()
    assert counts.flops_per_token(config, length) * tokens.numel() == pytest.approx(counted, rel=0.08)


SIZES = {"q_proj": (4096, 4096), "gate_proj": (4096, 11008), "down_proj": (11008, 4096)}


def kept(name, operator, dropout=0.05, overflow="drop", r=8):
    config = paper(
        "mora", f"r={r}", *(f"method.adapter.{o}" for o in (f"operator={operator}", f"dropout={dropout}")),
        f"method.adapter.overflow={overflow}",
    )  # fmt: skip
    footprint = counts.adapter(config, shapes.Linear(name, *SIZES[name], 1), 4096)
    return (footprint.saved, footprint.keeps_input)


def test_mora_keeps_its_compressed_input_or_the_modules_own():
    assert kept("q_proj", "sharing") == (256, False)
    assert kept("q_proj", "rotation") == (0, True), "no smaller than x, which k and v keep, too"
    assert kept("q_proj", "rotation", dropout=0) == (0, True), "its blocks are multiplied where they are"
    assert kept("gate_proj", "rotation") == (0, True), "12 blocks of 346 numbers, padded to 352, are more than 4096"
    assert kept("down_proj", "rotation") == (12 * 352, False)
    assert kept("down_proj", "rotation", overflow="fold") == (12 * 352, False), "32 blocks, added up to 12"
    assert kept("q_proj", "truncation") == (256, False)


@pytest.mark.parametrize("operator", ["sharing", "decouple", "rotation"])
def test_what_mora_keeps_is_what_its_kernels_make(operator):
    for (name, (k, d)), overflow, r in itertools.product(SIZES.items(), ("drop", "fold"), (1, 8, 256)):
        r_hat = min(r_hat_for(k, d, r, "floor", operator == "rotation"), min(k, d))
        maps = gather.maps(operators.OPERATORS[operator](k, d, r_hat, overflow=overflow))
        width = maps.compress.width
        assert kept(name, operator, 0.05, overflow, r) == ((width, False) if width < k else (0, True))
        if maps.block_matrices is not None:
            assert kept(name, operator, 0, overflow, r) == (0, True)
