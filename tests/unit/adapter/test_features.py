"""Rows of the table in docs/peft.md: what users of PEFT expect, used as they use it, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, pipeline

from mora import MoraConfig
from mora.adapter import OPERATORS

ROOT = Path(__file__).resolve().parents[3]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.requires_grad]


# --- training --------------------------------------------------------------------------------------------------------


def test_the_trainer_resumes_as_if_it_had_not_been_cut(make_llama, tmp_path):
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(48, (16, 6)).tolist()]

    def train(steps: int, resume: bool = False) -> list[Tensor]:
        arguments = TrainingArguments(
            tmp_path, max_steps=steps, per_device_train_batch_size=2, learning_rate=1e-2, lr_scheduler_type="constant",
            save_steps=3, use_cpu=True, report_to=[], disable_tqdm=True,
        )  # fmt: skip
        model = get_peft_model(make_llama(), MoraConfig(r=2, target_modules="all-linear"))
        Trainer(model=model, args=arguments, train_dataset=rows).train(resume_from_checkpoint=resume or None)
        return [p for p in model.parameters() if p.requires_grad]

    expected = train(6)
    (tmp_path / "checkpoint-6").rename(tmp_path / "later")
    resumed = train(6, resume=True)
    assert all(map(torch.equal, resumed, expected))
    assert all(p.any() for p in resumed)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(reentrant, make_llama, adapt, tokens):
    both = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = adapt(make_llama(), target_modules="all-linear", operator="rotation").train()
        if checkpointing:
            model.enable_input_require_grads()
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": reentrant})
        model(tokens, labels=tokens).loss.backward()
        both.append(gradients(model))
    assert_close(*both, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", ["sharing", "rotation"])
def test_autocast_trains_float32_adapters(dtype, operator, make_mlp, adapt, x):
    model = adapt(make_mlp(), operator=operator)
    model(x).square().sum().backward()
    exact = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        model(x).square().sum().backward()
    for rounded, grad in zip(gradients(model), exact, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - grad).norm() < 0.05 * grad.norm()


# --- several adapters ------------------------------------------------------------------------------------------------


@pytest.fixture
def three(make_llama, adapt):
    """A Llama with the adapters "default", "b" of equal operators, and "c" of another."""
    model = adapt(make_llama(), target_modules=["q_proj", "down_proj"])
    model.add_adapter("b", MoraConfig(r=2, target_modules=["q_proj", "v_proj"], operator="sharing", init_weights=False))
    model.add_adapter("c", MoraConfig(r=2, target_modules=["q_proj"], operator="rotation", init_weights=False))
    return model.eval()


def output_of(model: PeftModel, name: str, tokens: Tensor) -> Tensor:
    if name == "__base__":
        with model.disable_adapter():
            return model(tokens).logits
    model.set_adapter(name)
    return model(tokens).logits


@torch.no_grad()
def test_each_row_of_a_batch_goes_through_its_own_adapter(three, tokens):
    names = ["b", "__base__", "default", "c", "b"]
    rows = tokens[:1].expand(5, -1)
    expected = torch.cat([output_of(three, name, rows[:1]) for name in names])
    three.set_adapter("default")
    assert_close(three(rows, adapter_names=names).logits, expected)
    assert_close(three(rows[:1]).logits, expected[2:3])  # afterwards as before


def test_rows_of_a_batch_are_generated_each_with_its_own_adapter_also_in_beams(three, tokens):
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    names = ["default", "b"]
    mixed = three.generate(tokens, adapter_names=names, **options)
    for row, name in enumerate(names):
        three.set_adapter(name)
        alone = three.generate(tokens[row : row + 1], **options)[0]
        assert torch.equal(mixed[row, : len(alone)], alone)


def test_a_row_can_have_its_own_module_to_save(make_mlp, adapt, x):
    model = adapt(make_mlp(), modules_to_save=["4"])
    model.add_adapter("b", MoraConfig(r=2, target_modules=["0"], modules_to_save=["4"], init_weights=False))
    with torch.no_grad():
        model.base_model.model[4].modules_to_save["b"].weight.add_(1.0)
    model.eval().set_adapter("b")
    expected = model(x)
    model.set_adapter("default")
    assert_close(model(x, adapter_names=["b", *["default"] * 4])[0], expected[0])


@pytest.mark.parametrize(
    ("prepare", "names", "why"),
    [
        (lambda m: m.train(), ["b", "b"], "works only in inference: call model.eval"),
        (lambda m: m, ["b", "d"], "there is no adapter d; there are __base__, b, c, default"),
        (
            lambda m: m,
            ["b", "b", "b"],
            "3 names for an input of 2 rows in model.layers.0.self_attn.q_proj: expected 3 rows",
        ),
        (lambda m: m.merge_adapter(), ["b", "b"], "merged into the base weights of all rows"),
    ],
    ids=["training", "unknown", "length", "merged"],
)
def test_rows_that_cannot_have_their_adapter_are_refused(prepare, names, why, three, tokens):
    prepare(three)
    with pytest.raises(ValueError, match=f"adapter_names.*{why}"):
        three(tokens, adapter_names=names)


def test_a_weighted_adapter_is_the_exact_sum(three, mora_layers, tokens, tmp_path):
    three.base_model.set_adapter("default")
    layers = mora_layers(three)
    layers["model.layers.0.self_attn.q_proj"].set_scale("b", 0.5)
    three.add_weighted_adapter(["default", "b"], [0.75, -2.0], "sum", combination_type="linear")
    for layer in layers.values():
        parts = [0.75 * layer.get_delta_weight("default")] if "default" in layer.mora_M else []
        parts += [-2.0 * layer.get_delta_weight("b")] if "b" in layer.mora_M else []
        if parts:
            assert_close(layer.get_delta_weight("sum"), sum(parts), tolerance=1e-6)
    assert three.active_adapters == ["default"]
    three.set_adapter("sum")
    three.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(three.unload(), tmp_path / "sum")
    assert {name for name, p in loaded.named_parameters() if "mora_M.default" in name and p.any()}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((["default", "c"], [1.0, 1.0], "sum"), "only equal operators have a sum in M"),
        ((["default", "d"], [1.0, 1.0], "sum"), "there is no adapter d"),
        ((["default", "b"], [1.0], "sum"), "2 adapters and 1 weights"),
        ((["default", "b"], [1.0, 1.0], "sum", "svd"), "combination_type='svd': MoRA has 'linear'"),
    ],
    ids=["operators", "unknown", "weights", "svd"],
)
def test_a_sum_that_is_none_is_refused(arguments, why, three):
    with pytest.raises(ValueError, match=why):
        three.add_weighted_adapter(*arguments)
    assert "sum" not in three.peft_config


def test_hotswap_is_refused_by_peft_by_name(make_mlp, adapt, tmp_path):
    adapt(make_mlp()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but MORA was passed"):
        hotswap_adapter(adapt(make_mlp()), str(tmp_path), "default", torch_device="cpu")


def test_a_mixed_model_is_refused_by_peft_by_name(make_mlp):
    with pytest.raises(ValueError, match=r"not compatible|not supported|MORA"):
        get_peft_model(make_mlp(), MoraConfig(r=2, target_modules=["0"]), mixed=True)


def test_the_status_functions_know_the_layers(three):
    status = three.get_model_status()
    assert (status.base_model_type, status.adapter_model_type) == ("LlamaForCausalLM", "MoraModel")
    assert status.available_adapters == ["b", "c", "default"]
    assert status.merged_adapters == []
    layers = {layer.name: layer for layer in three.get_layer_status()}
    assert {layer.module_type for layer in layers.values()} == {"mora.MoraLinear"}
    layer = layers["model.model.layers.0.self_attn.q_proj"]
    assert (layer.available_adapters, layer.active_adapters) == (["b", "c", "default"], ["default"])
    assert layer.requires_grad == {"default": True, "b": False, "c": False}


# --- embeddings and heads --------------------------------------------------------------------------------------------


def test_single_tokens_train_and_are_saved(make_llama, tokens, tmp_path):
    config = MoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 5])
    model = get_peft_model(make_llama(), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(torch.tensor([[3, 5, 7]]), labels=torch.tensor([[3, 5, 7]])).loss.backward()
    optimizer.step()
    embedding = model.get_input_embeddings()(torch.arange(48))
    changed = (embedding != make_llama().get_input_embeddings()(torch.arange(48))).any(-1)
    assert changed.nonzero().flatten().tolist() == [3, 5]
    model.save_pretrained(tmp_path)
    assert_close(PeftModel.from_pretrained(make_llama(), tmp_path)(tokens).logits, model(tokens).logits)


def tied() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapted_head_is_untied_from_the_embedding_when_it_is_merged(adapt, tokens, tmp_path):
    model = adapt(tied(), target_modules=["q_proj", "lm_head"]).eval()
    expected = model(tokens).logits
    merged = model.merge_and_unload()
    assert_close(merged(tokens).logits, expected)
    assert torch.equal(merged.get_input_embeddings().weight, tied().get_input_embeddings().weight)
    merged.save_pretrained(tmp_path)
    assert_close(LlamaForCausalLM.from_pretrained(tmp_path)(tokens).logits, expected)


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_adapted_layers_that_share_a_weight_are_merged_each_into_its_own(merge, make_mlp, adapt, x):
    base = make_mlp()
    base[2] = nn.Linear(20, 32)
    base[2].weight = base[0].weight
    both = nn.ModuleDict({"first": base[0], "second": base[2]})
    model = adapt(both, target_modules=["first", "second"])
    expected = [layer(x) for layer in model.base_model.model.values()]
    getattr(model, merge)()
    for layer, y in zip(model.base_model.model.values(), expected, strict=True):
        assert_close(layer(x), y)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, r"target_parameters=\['mlp.experts.gate_up_proj'\]"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying=True: MoRA does not adapt embeddings"),
    ],
    ids=["target_parameters", "ensure_weight_tying"],
)
def test_options_of_lora_that_have_no_meaning_are_refused_by_name(options, why):
    with pytest.raises(ValueError, match=why):
        MoraConfig(**options)


# --- running it ------------------------------------------------------------------------------------------------------


def test_a_pipeline_writes_what_the_model_writes(make_llama, adapt):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(48)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    model = adapt(make_llama(), target_modules="all-linear").eval()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    (answer,) = write("w7 w8", max_new_tokens=3, do_sample=False, return_full_text=True)
    ids = model.generate(torch.tensor([[7, 8]]), max_new_tokens=3, do_sample=False)
    assert answer["generated_text"].replace(" ", "") == "".join(f"w{i}" for i in ids[0].tolist())


@pytest.mark.parametrize("operator", ["sharing", "rotation"])
def test_an_exported_model_gives_the_same_output(operator, make_mlp, adapt, x):
    model = adapt(make_mlp(), operator=operator).eval()
    program = torch.export.export(model.base_model.model, (x,))
    assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("groups", ["contiguous", "modulo"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_a_traced_model_gives_the_same_output(operator, groups, make_mlp, adapt):
    """For rows as many as were traced, of other values: a trace records the shapes."""
    model = adapt(make_mlp(), operator=operator, groups=groups).eval()
    x, example = torch.randn(4, 20), torch.ones(4, 20)
    assert_close(torch.jit.trace(model.base_model.model, (example,))(x), model(x))


def test_pefts_context_that_leaves_inputs_in_their_dtype(make_mlp, adapt):
    """As diffusers casts layer by layer; afterwards inputs are cast again."""
    model = adapt(make_mlp(torch.bfloat16))
    layer = model.base_model.model[0]
    x = torch.randn(4, 20, dtype=torch.bfloat16)
    dtypes = []
    for active in (True, False):
        with disable_input_dtype_casting(model, active):
            dtypes.append(layer._compute_dtype(layer.matrix("default"), x))
    assert dtypes == [torch.bfloat16, torch.float32]
    assert layer.cast_input_dtype_enabled


# --- the table -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_names_tests_that_exist():
    rows = [
        line for line in (ROOT / "docs/peft.md").read_text().splitlines() if line.startswith("| ") and "test_" in line
    ]
    known = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 25
    for row in rows:
        for name in re.findall(r"test_\w+", row):
            assert f"def {name}(" in known, row
