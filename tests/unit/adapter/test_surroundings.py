"""What models and libraries around a layer do to it: hooks, partitioned weights, in-place operations, reading past it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from mora import MoraConfig
from mora.adapter import OPERATORS, MoraLinear, kernels
from mora.adapter import model as model_file
from mora.adapter.layer import MoraSquare


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# --- hooks and containers --------------------------------------------------------------------------------------------

PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("elsewhere", ["cpu", "disk"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_offloaded_model_answers_and_merges_as_one_that_is_not(
    elsewhere, make_llama, adapt, tokens, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # PEFT takes the first slash off where it writes an offloaded weight anew
    base, disk = tmp_path / "base", tmp_path / "disk"
    make_llama().save_pretrained(base)
    model = adapt(make_llama(), target_modules=["q_proj", "down_proj"], operator="rotation").eval()
    model.save_pretrained(tmp_path / "adapter")
    expected = model(tokens).logits
    where = {part: "cpu" for part in PARTS} | {"model.layers.1": elsewhere}
    loaded = AutoModelForCausalLM.from_pretrained(base, device_map=where, offload_folder=disk)
    where = {f"base_model.model.{part}": device for part, device in where.items()}
    loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter", device_map=where, offload_folder=disk).eval()
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, expected)
        assert_close(loaded.merge_and_unload()(tokens).logits, expected)


def test_every_M_is_in_the_reach_of_hooks_and_of_the_wrapping_policy_of_FSDP(make_llama, adapt, tokens):
    model = adapt(make_llama(), target_modules="all-linear")
    wrapped = fsdp_auto_wrap_policy(model).keywords["policies"][0].keywords["lambda_fn"]
    squares = [m for m in model.modules() if isinstance(m, MoraSquare)]
    assert [m for m in model.modules() if wrapped(m)] == squares
    called = []
    for square in squares:
        square.register_forward_pre_hook(lambda module, _: called.append(module))
    model(tokens)
    assert set(called) == set(squares)


def test_an_M_that_was_never_loaded_raises(make_mlp, adapt, mora_layers, x):
    model = adapt(make_mlp())
    mora_layers(model)["0"].mora_M["default"].to("meta")
    with pytest.raises(RuntimeError, match=r"M is on the meta device, x on cpu: .*; load them with PeftModel\."):
        model(x)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_model_without_memory_has_outputs_and_gradients_without_memory(operator, make_mlp, adapt, x):
    model = adapt(make_mlp(), operator=operator).to("meta")
    y = model(x.to("meta"))
    y.sum().backward()
    assert y.is_meta
    assert y.shape == (*x.shape[:-1], 6)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_adapter_of_version_0_1_0_is_loaded(make_mlp, adapt, x, tmp_path):
    model = adapt(make_mlp())
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({name.removesuffix(".weight"): M for name, M in load_file(file).items()}, file)
    assert torch.equal(PeftModel.from_pretrained(make_mlp(), tmp_path)(x), model(x))


def test_the_size_of_a_weight_that_deepspeed_has_split_is_that_of_the_whole(mora_layers):
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(12, 8)
    module.weight.ds_shape = module.weight.shape
    module.weight.data = torch.empty(0)
    model = get_peft_model(nn.Sequential(module), MoraConfig(r=2, target_modules=["0"]))
    assert (mora_layers(model)["0"].in_features, mora_layers(model)["0"].out_features) == (8, 12)


# --- weights that are not what they seem -----------------------------------------------------------------------------


class Looks(Tensor):
    """Reports fp32 and holds int8, as optimum-quanto's tensors do."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Looks:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values: Tensor) -> None:
        self.values = values.to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].values)
        return function(*(a.values.float() if isinstance(a, cls) else a for a in args), **kwargs or {})


def test_a_quantised_weight_that_reports_a_float_dtype_is_refused_by_name():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(Looks(torch.ones(8, 8)), requires_grad=False)
    with pytest.raises(TypeError, match=r"quantised modules, got .*Linear with a weight of Looks"):
        get_peft_model(nn.Sequential(layer), MoraConfig(r=1, target_modules=["0"]))


def test_a_merge_that_does_not_arrive_raises(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp()))["0"]

    class Ignores(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.copy_.default:
                return args[0]
            return function(*args, **kwargs or {})

    with Ignores(), pytest.raises(RuntimeError, match="did not take the merged values of adapter 'default'"):
        layer.merge()


# --- inference mode --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")
@pytest.mark.parametrize("what", ["merge", "unmerge", "disable", "merge_and_unload"])
def test_a_model_merged_or_unmerged_in_inference_mode_trains_on(what, make_mlp, adapt, x):
    model = adapt(make_mlp(), operator="rotation")
    if what in ("unmerge", "disable"):
        model.merge_adapter()
    with torch.inference_mode():
        if what == "disable":
            with model.disable_adapter():
                model(x)
        elif what == "merge_and_unload":
            model = model.merge_and_unload()
        else:
            getattr(model, f"{what}_adapter")()
    if what == "merge":
        model.unmerge_adapter()
    model.requires_grad_(True)(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- in-place operations on the output -------------------------------------------------------------------------------

IN_PLACE = {
    "relu": lambda y: nn.functional.relu(y, inplace=True),
    "divide": lambda y: y.div_(3.0),
    "add": lambda y: y.add_(torch.arange(32.0)),
    "of a view": lambda y: (y.view(-1, 4, 8).mul_(2.0), y)[1],
}


@pytest.mark.parametrize("form", ["torch", "reference", "products"])
@pytest.mark.parametrize("shape", [(20,), (4, 20), (2, 3, 20), (0, 20)], ids=str)
@pytest.mark.parametrize("operation", IN_PLACE)
def test_an_in_place_operation_on_the_output_trains_as_out_of_place(
    operation, shape, form, make_mlp, adapt, mora_layers
):
    layer, results = mora_layers(adapt(make_mlp()))["0"], []
    x = torch.randn(shape, requires_grad=True)
    for prepare in (lambda y: y, torch.clone):
        with kernels.use(form):
            y = IN_PLACE[operation](prepare(layer(x)))
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, layer.mora_M["default"].weight))))
    torch.testing.assert_close(*results)


def test_deberta_trains(mora_layers):
    config = DebertaV2Config(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
    )
    model = get_peft_model(
        DebertaV2ForSequenceClassification(config), MoraConfig(r=1, target_modules=["query_proj", "dense"])
    )
    model(input_ids=torch.randint(40, (2, 5)), labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "encoder" in name and p.requires_grad)


# --- weights that a model reads without calling the layer ------------------------------------------------------------


class ReadsTheWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(20, 32)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.lin.weight, self.lin.bias)


def test_a_weight_that_is_read_is_what_the_layer_multiplies_by(adapt, mora_layers, x):
    model = adapt(ReadsTheWeight(), target_modules=["lin"], operator="rotation")
    layer = mora_layers(model)["lin"]
    grad = [torch.autograd.grad(f(x).square().sum(), layer.mora_M["default"].weight)[0] for f in (model, layer)]
    assert_close(model(x), layer(x))
    assert_close(*grad)
    assert (model(x) - layer.base_layer(x)).abs().max() > 0.1
    with model.disable_adapter():
        assert torch.equal(layer.weight, layer.base_layer.weight)
    model.merge_adapter()
    assert layer.weight is layer.base_layer.weight


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_attention_and_encoder_layers_of_torch_use_the_adapter(mode, mora_layers):
    def make() -> nn.Module:
        torch.manual_seed(1)
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)

    config = MoraConfig(r=2, target_modules=["out_proj", "linear1", "linear2"], init_weights=False)
    model, x = get_peft_model(make(), config), torch.randn(2, 3, 16)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    getattr(model, mode)()
    if mode == "train":
        model(x).square().sum().backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trained
    plain = copy.deepcopy(model).merge_and_unload()
    with torch.no_grad():  # where torch takes its fast path
        assert_close(model(x), plain(x))
        assert (model(x) - getattr(make(), mode)()(x)).abs().max() > 0.1


def test_t5_which_looks_at_the_weight_only_for_its_dtype_is_unchanged():
    torch.manual_seed(1)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    base, ids = T5ForConditionalGeneration(config).eval(), torch.randint(40, (2, 5))
    expected = base(input_ids=ids, labels=ids).logits
    model = get_peft_model(base, MoraConfig(r=2, target_modules=["wo", "q"]))
    assert_close(model(input_ids=ids, labels=ids).logits, expected)


# --- targets that are asked for and not found ------------------------------------------------------------------------


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return MixtralForCausalLM(config)


@pytest.mark.parametrize(
    "targets",
    ["all-linear", ["q_proj", "w1", "w2", "w3"], ["q_proj", "gate_up_proj"], r".*(q_proj|down_proj)"],
    ids=str,
)
def test_experts_that_are_no_linear_modules_are_refused_by_name(targets):
    with pytest.raises(ValueError, match=r"experts, which are parameters here \(model\.layers\.0\.mlp\.experts\."):
        get_peft_model(mixtral(), MoraConfig(r=2, target_modules=targets))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "exclude_modules": ".*experts.*"},
        {"target_modules": "all-linear", "exclude_modules": ["experts"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You have passed exclude_modules:UserWarning")
def test_a_mixture_of_experts_is_adapted_where_its_experts_are_left_out_on_purpose(options):
    model = get_peft_model(mixtral(), MoraConfig(r=2, **options))
    adapted = {name for name, module in model.named_modules() if isinstance(module, MoraLinear)}
    assert adapted
    assert not any("expert" in name for name in adapted)


@pytest.mark.parametrize("targets", ["all-linear", ["q", "wi", "wo", "absent"]], ids=str)
@pytest.mark.filterwarnings("ignore:target_modules. no module is called absent:UserWarning")
def test_a_second_adapter_goes_on_experts_that_are_linear_modules(targets):
    config = SwitchTransformersConfig(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2, num_experts=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1,
    )  # fmt: skip
    model = get_peft_model(SwitchTransformersForConditionalGeneration(config), MoraConfig(r=2, target_modules=targets))
    model.add_adapter("my_expert", MoraConfig(r=2, target_modules=targets))
    model.add_adapter("third", MoraConfig(r=2, target_modules=targets))
    layers = [module for module in model.modules() if isinstance(module, MoraLinear)]
    assert len(layers) >= 8
    assert all(set(layer.mora_M) == {"default", "my_expert", "third"} for layer in layers)


def test_layers_that_are_called_experts_are_no_experts_of_bare_parameters(monkeypatch):
    class Packed(nn.Module):  # as HQQ's layers, which are no torch.nn.Linear and hold a matrix
        def __init__(self):
            super().__init__()
            self.W_q = nn.Parameter(torch.ones(8, 4))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.expert_embedding, self.lin = nn.Embedding(4, 8), nn.Linear(8, 8)
            self.expert_conv, self.expert_packed = nn.Conv1d(8, 8, 3), Packed()
            self.expert_norm = parametrize.register_parametrization(nn.Linear(8, 8), "weight", nn.Identity())

    find = model_file.resolve_quantization_backend
    monkeypatch.setattr(
        model_file, "resolve_quantization_backend", lambda m, **o: isinstance(m, Packed) or find(m, **o)
    )
    assert model_file.expert_parameters(Net()) == []
    with pytest.warns(UserWarning, match="no module is called absent"):
        model = get_peft_model(Net(), MoraConfig(r=2, target_modules=["lin", "absent"]))
    assert isinstance(model.base_model.model.lin, MoraLinear)


def test_the_advice_of_the_refusal_of_experts_leaves_them_out():
    class ParallelExperts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4, 4))

    base = nn.ModuleDict({"lin": nn.Linear(4, 4), "mlp": nn.ModuleDict({"up": ParallelExperts()})})
    with pytest.raises(ValueError, match=r"\(mlp\.up\.weight and 0 more\).*exclude_modules=\['up'\]$"):
        get_peft_model(base, MoraConfig(r=2, target_modules="all-linear"))
    model = get_peft_model(base, MoraConfig(r=2, target_modules="all-linear", exclude_modules=["up"]))
    assert isinstance(model.base_model.model["lin"], MoraLinear)
    base = nn.ModuleDict({"experts": nn.ModuleList([ParallelExperts()]), "proj": nn.ModuleList([nn.Linear(4, 4)])})
    with pytest.raises(ValueError, match=r"exclude_modules=\['experts'\]$"):  # not '0', which is proj's as well
        get_peft_model(base, MoraConfig(r=2, target_modules="all-linear"))


def test_a_target_that_names_no_module_is_warned_of(make_mlp):
    with pytest.warns(UserWarning, match="no module is called q_proj, v_proj"):
        get_peft_model(make_mlp(), MoraConfig(r=2, target_modules=["0", "v_proj", "q_proj"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(make_mlp(), MoraConfig(r=2, target_modules=["0", "2"]))
