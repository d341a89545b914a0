"""Several adapters on one model: added, switched, disabled, deleted; and a change of their groups."""

from __future__ import annotations

import pytest
import torch
from model_checks import assert_close, trainable


def test_adding_an_adapter_changes_neither_the_output_nor_what_trains(two, make_mlp, x):
    assert trainable(two) == {"0.mora_M.default.weight", "2.mora_M.default.weight"}
    expected = two(x)
    two.delete_adapter("second")
    assert torch.equal(two(x), expected)


def test_an_adapter_added_to_a_layer_by_hand_does_not_train_until_it_is_active(two, mora_layers):
    layer = mora_layers(two)["0"]
    layer.update_layer("third", 2, two.peft_config["default"])
    assert not layer.mora_M["third"].weight.requires_grad
    layer.set_adapter("third")
    assert layer.mora_M["third"].weight.requires_grad


def test_set_adapter_switches_output_and_what_trains(two, x):
    first = two(x)
    two.set_adapter("second")
    assert trainable(two) == {"2.mora_M.second.weight", "4.mora_M.second.weight"}
    assert not torch.allclose(two(x), first)
    two.set_adapter("default")
    assert torch.equal(two(x), first)


def test_two_active_adapters_add_up_in_each_layer(two, mora_layers):
    two.base_model.set_adapter(["default", "second"])
    layer = mora_layers(two)["2"]
    h = torch.randn(3, 32)
    delta = layer.get_delta_weight("default") + layer.get_delta_weight("second")
    assert_close(layer(h), layer.base_layer(h) + h @ delta.T)
    assert trainable(two) == {
        "0.mora_M.default.weight",
        "2.mora_M.default.weight",
        "2.mora_M.second.weight",
        "4.mora_M.second.weight",
    }


def test_disable_adapter_gives_the_base_output_inside_the_context_only(two, make_mlp, x):
    adapted = two(x)
    with two.disable_adapter():
        assert torch.equal(two(x), make_mlp()(x))
    assert torch.equal(two(x), adapted)


def test_disable_adapter_layers_gives_the_base_output_until_they_are_enabled(two, make_mlp, x):
    adapted = two(x)
    two.disable_adapter_layers()
    assert torch.equal(two(x), make_mlp()(x))
    two.enable_adapter_layers()
    assert torch.equal(two(x), adapted)


def test_disabling_a_merged_adapter_unmerges_it(two, make_mlp, mora_layers, x):
    adapted = two(x)
    two.merge_adapter()
    with two.disable_adapter():
        assert_close(two(x), make_mlp()(x))
    assert not any(layer.merged for layer in mora_layers(two).values())
    assert_close(two(x), adapted)


def test_a_deleted_adapter_leaves_nothing_behind(two, mora_layers, x):
    two.set_adapter("second")
    expected = two(x)
    two.delete_adapter("default")
    assert torch.equal(two(x), expected)
    assert list(two.peft_config) == ["second"]
    for layer in mora_layers(two).values():
        for attribute in (layer.mora_M, layer.operator, layer.r, layer.scaling, layer.mora_dropout):
            assert "default" not in attribute


def test_the_delta_weight_of_an_unknown_adapter_is_refused_with_the_known_names(two, mora_layers):
    with pytest.raises(ValueError, match=r"no adapter 'third' on this layer; there are \['default', 'second'\]"):
        mora_layers(two)["2"].get_delta_weight("third")


def test_set_groups_gives_M_the_meaning_of_the_other_kind_of_groups(make_mlp, adapt, mora_layers, x):
    layer, other = (mora_layers(adapt(make_mlp(), groups=g))["0"] for g in ("modulo", "contiguous"))
    other.mora_M["default"].weight = layer.mora_M["default"].weight
    assert not torch.allclose(layer(x), other(x))
    layer.set_groups("default", "contiguous")
    assert torch.equal(layer(x), other(x))
    assert torch.equal(layer.get_delta_weight("default"), other.get_delta_weight("default"))


@pytest.mark.parametrize("groups", ["d", "bogus", None, ["modulo"]])
def test_set_groups_refuses_what_is_no_kind(groups, make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp()))["0"]
    with pytest.raises(ValueError, match=r"^groups=.*: expected one of modulo, contiguous, "):
        layer.set_groups("default", groups)
    assert layer.operator["default"].groups == "modulo"
