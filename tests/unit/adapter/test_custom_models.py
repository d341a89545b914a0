"""PEFT's common checks for custom models, over kinds of models and settings of MoRA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mora import MoraConfig
from mora.adapter import OPERATORS

# --- models ----------------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Linear(12, 24, bias=bias)
        self.lin1 = nn.Linear(24, 10, bias=bias)
        self.head = nn.Linear(10, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lin1(torch.tanh(self.lin0(x)))))


class EmbeddingConv1D(nn.Module):
    """An embedding under transformers' Conv1D, whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 12)
        self.conv = Conv1D(16, 12)
        nn.init.normal_(self.conv.weight, std=0.3)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(self.emb((10 * x).long().clamp(0, 49)))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Nested(nn.Module):
    """Modules three levels deep, under the name of the method and of one of its adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.mora = nn.ModuleDict({"another": nn.Sequential(Block(), Block())})
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mora["another"](x))


class UsedTwice(nn.Module):
    """The same Linear twice in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.lin(torch.tanh(self.lin(x)))))


MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "MLP": (MLP, ["lin0", "lin1"]),
    "MLP without biases": (lambda: MLP(bias=False), ["lin0", "lin1"]),
    "Embedding and Conv1D": (EmbeddingConv1D, ["conv"]),
    "nested modules": (Nested, ["up", "down"]),
    "one Linear used twice": (UsedTwice, ["lin"]),
}
SETTINGS = [
    {"operator": operator, "r": r, "modules_to_save": saved}
    for operator in OPERATORS
    for r in (1, 4)
    for saved in (None, ["head"])
]


def setting_id(setting: dict) -> str:
    saved = "-and-head" if setting["modules_to_save"] else ""
    return f"{setting['operator']}-r{setting['r']}{saved}"


pytestmark = [
    pytest.mark.parametrize("kind", MODELS),
    pytest.mark.parametrize("setting", SETTINGS, ids=setting_id),
    # r=4 asks for more than some of these small modules hold.
    pytest.mark.filterwarnings("ignore:MoRA r=4 asks for r_hat:UserWarning"),
]


@pytest.fixture
def make_base(kind) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return MODELS[kind][0]()

    return make


@pytest.fixture
def config(kind, setting) -> Callable[..., MoraConfig]:
    def make(**options) -> MoraConfig:
        return MoraConfig(target_modules=MODELS[kind][1], **setting | {"init_weights": False} | options)

    return make


@pytest.fixture
def model(make_base, config) -> PeftModel:
    return get_peft_model(make_base(), config())


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 12)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def train(model: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def is_adapter(name: str) -> bool:
    return ".mora_M." in name or ".modules_to_save." in name


# --- training --------------------------------------------------------------------------------------------------------


def test_the_output_is_finite_and_not_that_of_the_base(model, make_base, x):
    y = model(x)
    assert y.isfinite().all()
    assert (y - make_base()(x)).abs().max() > 1e-3


def test_only_the_adapter_trains_and_all_of_it_changes(model, x):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(filter(is_adapter, before))
    train(model, x)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == set(filter(is_adapter, before))


def test_a_zero_adapter_trains_too(make_base, config, x):
    model = get_peft_model(make_base(), config(init_weights=True))
    assert torch.equal(model(x), make_base()(x))
    train(model, x)
    assert all(p.count_nonzero() > 0 for n, p in model.named_parameters() if ".mora_M." in n)


def test_disabling_a_trained_adapter_gives_the_base_output(model, make_base, x):
    train(model, x)
    trained = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), make_base()(x))
    assert torch.equal(model(x), trained)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_parameters_and_output_are_equal_after_loading(model, make_base, x, tmp_path):
    train(model, x)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path)
    assert torch.equal(loaded(x), model(x))
    expected, actual = model.state_dict(), loaded.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_several_adapters_are_loaded_into_one_model(model, make_base, config, x, tmp_path):
    model.add_adapter("other", config())
    outputs = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        outputs[name] = model(x)
    assert not torch.allclose(outputs["default"], outputs["other"])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "third")
    assert torch.equal(loaded(x), outputs["default"])
    loaded.set_adapter("third")
    assert torch.equal(loaded(x), outputs["other"])


def test_the_state_dict_is_free_of_the_name_of_the_adapter(model, make_base, config, x):
    state = get_peft_model_state_dict(model)
    assert not any(key.endswith((".default", ".default.weight", ".default.bias")) for key in state)
    twin = get_peft_model(make_base(), config(), adapter_name="another")
    assert get_peft_model_state_dict(twin, adapter_name="another").keys() == state.keys()
    result = set_peft_model_state_dict(twin, state, adapter_name="another")
    assert result.unexpected_keys == []
    assert torch.equal(twin(x), model(x))


def test_an_adapter_can_be_injected_without_a_peft_model(model, make_base, config, x):
    bare = inject_adapter_in_model(config(), make_base())
    assert type(bare) is type(make_base())
    state = {key.removeprefix("base_model.model."): t for key, t in get_peft_model_state_dict(model).items()}
    assert get_peft_model_state_dict(bare).keys() == state.keys()
    set_peft_model_state_dict(bare, state)
    assert torch.equal(bare(x), model(x))


# --- merging ---------------------------------------------------------------------------------------------------------


def test_merging_keeps_the_output_and_the_class_of_the_model(model, make_base, x):
    train(model, x)
    expected = model(x)
    model.merge_adapter()
    assert_close(model(x), expected)
    model.unmerge_adapter()
    assert_close(model(x), expected)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is type(make_base())
    assert plain.state_dict().keys() == make_base().state_dict().keys()
    assert_close(plain(x), expected)


@pytest.mark.filterwarnings("ignore:All adapters are already merged:UserWarning")
def test_merging_a_second_time_changes_nothing(model, x):
    model.merge_adapter()
    once = model(x)
    model.merge_adapter()
    assert torch.equal(model(x), once)
    assert_close(model.merge_and_unload()(x), once)


# --- several adapters ------------------------------------------------------------------------------------------------


def test_a_second_adapter_is_added_inactive_and_deleted_without_a_trace(model, config, x):
    expected, names = model(x), model.state_dict().keys()
    model.add_adapter("other", config())
    assert torch.equal(model(x), expected)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".other" in n)
    model.delete_adapter("other")
    assert torch.equal(model(x), expected)
    assert model.state_dict().keys() == names


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted:UserWarning")
def test_deleting_the_active_adapter_leaves_the_other_one_active(model, config, x):
    model.add_adapter("other", config())
    model.set_adapter("other")
    expected = model(x)
    model.set_adapter("default")
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert torch.equal(model(x), expected)
