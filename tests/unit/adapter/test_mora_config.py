from __future__ import annotations

import copy
import logging
import pickle
import re
import warnings

import pytest
from peft import LoraConfig, PeftModel, PeftType, get_peft_config, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from mora import MoraConfig, MoraModel
from mora.adapter import model as model_file
from mora.adapter.register import register

# --- values that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [0, -1, True, 8.0, "8", None])
def test_an_r_that_is_not_a_positive_integer_is_refused(r):
    with pytest.raises(ValueError, match=rf"^r={r!r}: expected a positive integer"):
        MoraConfig(r=r)


def test_an_r_in_rank_pattern_that_is_not_a_positive_integer_is_refused():
    with pytest.raises(ValueError, match=r"^rank_pattern\['up_proj'\]=0: expected a positive integer"):
        MoraConfig(rank_pattern={"down_proj": 4, "up_proj": 0})


@pytest.mark.parametrize("field", ["operator", "groups", "split", "pad", "pairs", "overflow", "rhat_rounding", "bias"])
def test_an_unknown_choice_is_refused_with_field_value_and_what_there_is(field):
    with pytest.raises(ValueError, match=rf"^{field}='lora_only': expected one of \w+.*, \w+"):
        MoraConfig(**{field: "lora_only"})


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan"), "0.1", None])
def test_a_dropout_outside_zero_to_one_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"^mora_dropout={dropout!r}: expected 0 <= mora_dropout < 1"):
        MoraConfig(mora_dropout=dropout)


@pytest.mark.parametrize(
    ("field", "value"), [("rank_pattern", None), ("rank_pattern", ["x"]), ("init_weights", "gaussian")]
)
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"^{field}={re.escape(repr(value))}: expected"):
        MoraConfig(**{field: value})


@pytest.mark.parametrize("options", [{"layers_to_transform": [0]}, {"layers_pattern": "layers"}])
def test_choosing_layers_needs_target_modules_as_a_list(options):
    with pytest.raises(ValueError, match=r"need target_modules as a list of names, got the string '.*q_proj'"):
        MoraConfig(target_modules=".*q_proj", **options)


# --- the config as an object -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_config_can_be_copied_and_pickled(duplicate):
    config = MoraConfig(r=3, target_modules=["q_proj"], operator="rotation", rank_pattern={"q_proj": 5})
    assert duplicate(config) == config
    assert duplicate(config).peft_type is PeftType.MORA


def test_a_config_survives_a_save_and_load_in_all_fields(tmp_path):
    config = MoraConfig(
        r=3,
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["lm_head"],
        operator="sharing",
        groups="contiguous-modulo",
        split="padded",
        pad="zeros",
        pairs="interleaved",
        overflow="fold",
        rhat_rounding="official",
        rank_pattern={"v_proj": 5},
        mora_dropout=0.25,
        init_weights=False,
        bias="mora_only",
        modules_to_save=["norm"],
        layers_to_transform=[1],
        layers_pattern="layers",
    )
    config.save_pretrained(tmp_path)
    assert MoraConfig.from_pretrained(tmp_path) == config


def test_module_names_given_as_lists_are_kept_as_sets():
    config = MoraConfig(target_modules=["q_proj", "v_proj", "q_proj"], exclude_modules=["lm_head", "lm_head"])
    assert config.target_modules == {"q_proj", "v_proj"}
    assert config.exclude_modules == {"lm_head"}


def test_peft_builds_a_mora_config_from_its_name():
    assert get_peft_config({"peft_type": "MORA", "r": 4, "target_modules": ["0"]}) == MoraConfig(
        r=4, target_modules=["0"]
    )


# --- registration ----------------------------------------------------------------------------------------------------


def test_registering_a_second_time_changes_nothing():
    register()
    register()
    assert [member for member in PeftType if member.name == "MORA"] == ["MORA"]
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.MORA] is MoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.MORA] is MoraModel


def test_registering_over_a_method_of_another_package_is_refused(monkeypatch):
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType.MORA, LoraConfig)
    with pytest.raises(RuntimeError, match=r"already knows a method MORA, peft\.tuners\.lora\.config\.LoraConfig"):
        register()


# --- operator="auto" -------------------------------------------------------------------------------------------------


class OnlyAConfig(nn.Module):
    """A model whose config says how wide it is. Its one layer may be small."""

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.config = type("Config", (), sizes)()
        self.proj = nn.Linear(512, 512, bias=False)


def resolved_operator(model: nn.Module, **options) -> str:
    peft_model = get_peft_model(model, MoraConfig(operator="auto", **options))
    operators = {module.operator["default"] for module in peft_model.modules() if hasattr(module, "mora_M")}
    names = {type(operator).__name__.lower() for operator in operators} | {peft_model.peft_config["default"].operator}
    assert len(names) == 1
    return names.pop()


@pytest.mark.filterwarnings("ignore:MoRA r=:UserWarning")  # r_hat is clamped to the small layer
@pytest.mark.parametrize(
    ("hidden_size", "r", "operator"),
    [
        (4096, 8, "rotation"),  # r_hat = 256, 16 inputs a group
        (4096, 31, "rotation"),
        (4096, 32, "sharing"),  # r_hat = 512, 8 inputs a group
        (4096, 128, "sharing"),
        (4096, 256, "sharing"),
        (576, 1, "rotation"),
        (576, 8, "sharing"),
    ],
)
def test_auto_chooses_rotation_where_a_group_would_hold_more_than_eight_inputs(hidden_size, r, operator):
    assert resolved_operator(OnlyAConfig(hidden_size=hidden_size), r=r, target_modules=["proj"]) == operator


@pytest.mark.parametrize(("rounding", "operator"), [("floor", "rotation"), ("official", "sharing")])
def test_auto_counts_the_inputs_of_a_group_with_the_chosen_rounding(rounding, operator):
    # sqrt(124 + 124) = 15.7: groups of 124 / 15 > 8 or of 124 / 16 < 8 inputs.
    model = OnlyAConfig(hidden_size=124)
    assert resolved_operator(model, r=1, target_modules=["proj"], rhat_rounding=rounding) == operator


@pytest.mark.filterwarnings("ignore:MoRA r=:UserWarning")
@pytest.mark.parametrize("name", ["n_embd", "d_model"])
def test_auto_reads_the_width_under_the_names_that_older_models_use(name):
    assert resolved_operator(OnlyAConfig(**{name: 4096}), r=8, target_modules=["proj"]) == "rotation"
    assert resolved_operator(OnlyAConfig(**{name: 512}), r=8, target_modules=["proj"]) == "sharing"


def test_auto_takes_the_commonest_width_where_the_model_has_no_config():
    wide = nn.Sequential(nn.Linear(576, 576), nn.Linear(576, 64), nn.Linear(64, 576))
    narrow = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 576), nn.Linear(576, 64))
    assert resolved_operator(wide, r=1, target_modules=["0"]) == "rotation"
    assert resolved_operator(narrow, r=1, target_modules=["0"]) == "sharing"


def test_auto_is_resolved_for_an_adapter_that_is_added_later(make_mlp):
    model = get_peft_model(make_mlp(), MoraConfig(r=2, target_modules=["0"], operator="rotation"))
    model.add_adapter("second", MoraConfig(r=2, target_modules=["0"]))
    assert model.peft_config["second"].operator == "sharing"


# --- warnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "in_features", "r", "wanted", "clamped"),
    [
        ("sharing", 20, 9, 21, 20),
        ("sharing", 21, 9, 21, None),
        ("rotation", 20, 9, 20, None),
        ("rotation", 21, 20, 32, 20),
    ],
)
def test_an_r_hat_that_the_layer_cannot_hold_is_clamped_with_both_numbers_in_a_warning(
    operator, in_features, r, wanted, clamped
):
    config = MoraConfig(r=r, target_modules=["0"], operator=operator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(nn.Sequential(nn.Linear(in_features, 32)), config)
    messages = [str(w.message) for w in caught if "r_hat" in str(w.message)]
    assert model.base_model.model[0].mora_M["default"].weight.shape == ((clamped or wanted),) * 2
    if clamped is None:
        assert messages == []
    else:
        (message,) = messages
        assert f"MoRA r={r} asks for r_hat={wanted}" in message
        assert f"clamped to {clamped}, so M has {clamped**2} parameters where LoRA" in message
        assert f"has {(in_features + 32) * r:,}" in message


@pytest.mark.parametrize("shape", [(32, 1), (1, 32)])
def test_rotation_of_a_layer_that_is_one_wide_is_refused_with_what_to_do(shape):
    with pytest.raises(
        ValueError, match=r"two inputs and two outputs, got .*: leave the layer out .* operator='sharing'"
    ):
        get_peft_model(nn.Sequential(nn.Linear(*shape)), MoraConfig(r=1, target_modules=["0"], operator="rotation"))


@pytest.fixture
def reports(caplog):
    """What the model logged as a warning while it was built, in a process that has not said it before."""
    model_file._warn_once.cache_clear()
    caplog.set_level(logging.INFO, "mora.adapter.model")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def narrowing() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 64), nn.Linear(64, 16))


def test_inputs_that_rotation_ignores_are_counted_in_one_warning_a_shape(reports):
    # r_hat = floor(sqrt(80)) = 8: two of the eight blocks of inputs have outputs.
    get_peft_model(narrowing(), MoraConfig(r=1, target_modules=["0", "1", "2"], operator="rotation", overflow="drop"))
    (report,) = reports()
    assert report.startswith("MoRA operator rotation ignores 48 of 64 inputs (75%) of 2 modules with 16 outputs;")
    assert "overflow='fold'" in report


def test_the_warning_for_truncation_does_not_advise_an_option_that_truncation_lacks(reports):
    get_peft_model(narrowing(), MoraConfig(r=1, target_modules=["0"], operator="truncation"))
    (report,) = reports()
    assert "ignores 56 of 64 inputs (88%) of 1 modules" in report
    assert "fold" not in report


@pytest.mark.parametrize("options", [{"operator": "rotation", "overflow": "fold"}, {"operator": "sharing"}])
def test_nothing_is_reported_where_every_input_is_used(options, reports):
    get_peft_model(narrowing(), MoraConfig(r=1, target_modules=["0", "1", "2"], **options))
    assert reports() == []


def test_ignored_inputs_are_reported_once_and_to_whoever_trains(reports, tmp_path):
    config = MoraConfig(r=1, target_modules=["0"], operator="rotation", overflow="drop")
    for _ in range(2):
        get_peft_model(narrowing(), config).save_pretrained(tmp_path)
    assert len(reports()) == 1
    model_file._warn_once.cache_clear()
    PeftModel.from_pretrained(narrowing(), tmp_path)
    assert len(reports()) == 1
    PeftModel.from_pretrained(narrowing(), tmp_path, is_trainable=True)
    assert len(reports()) == 2


def test_by_default_no_input_is_ignored(reports):
    get_peft_model(narrowing(), MoraConfig(r=1, target_modules=["0", "1", "2"], operator="rotation"))
    assert reports() == []


def test_ignored_inputs_are_reported_for_an_adapter_that_is_added_later(reports):
    model = get_peft_model(narrowing(), MoraConfig(r=1, target_modules=["0"], operator="sharing"))
    model.add_adapter("second", MoraConfig(r=1, target_modules=["0"], operator="rotation", overflow="drop"))
    (report,) = reports()
    assert "ignores 48 of 64 inputs" in report


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("lora_alpha", "learning rate"),
        ("fan_in_fan_out", "leave it out"),
        ("mora_alpha", "learning rate"),
        ("lora_dropout", "mora_dropout"),
        ("rank", "use r"),
    ],
)
def test_an_option_of_loras_is_refused_with_what_to_use_instead(option, instead):
    with pytest.raises(TypeError, match=rf"^MoraConfig has no {option}: .*{instead}"):
        MoraConfig(**{option: 16})
