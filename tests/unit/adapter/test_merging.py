"""The scale of an adapter and its merge into the base: both change the output by as much as they say."""

from __future__ import annotations

import pytest
import torch
from model_checks import assert_close
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune


@pytest.fixture
def layer(make_mlp, adapt, mora_layers):
    """One MoRA layer 20 -> 32 with a random M."""
    return mora_layers(adapt(make_mlp()))["0"]


# --- scaling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda layer: layer.set_scale("default", 0.25), 0.25),
        (lambda layer: (layer.set_scale("default", 0.5), layer.scale_layer(3.0)), 1.5),
        (lambda layer: (layer.set_scale("default", 6.0), layer.unscale_layer(3.0)), 2.0),
        (lambda layer: (layer.scale_layer(3.0), layer.unscale_layer()), 1.0),
        (lambda layer: layer.set_scale("not here", 5.0), 1.0),
    ],
    ids=["set_scale", "scale_layer", "unscale_layer_by", "unscale_layer", "set_scale_of_another"],
)
def test_the_scale_is_honoured_in_forward_and_merge(change, expected, layer, x):
    base, delta = layer.base_layer(x), layer.get_delta_weight("default")
    change(layer)
    wanted = base + expected * (x @ delta.T)
    assert_close(layer(x), wanted)
    layer.merge()
    assert_close(layer.base_layer(x), wanted)


def test_scale_layer_scales_the_active_adapter_only(two, mora_layers):
    layer = mora_layers(two)["2"]
    layer.scale_layer(4.0)
    assert layer.scaling == {"default": 4.0, "second": 1.0}
    layer.unscale_layer()
    assert layer.scaling == {"default": 1.0, "second": 1.0}


# --- merging ---------------------------------------------------------------------------------------------------------


def test_merge_adapter_and_unmerge_adapter_keep_the_output_and_restore_the_weights(two, make_mlp, x, mora_layers):
    adapted = two(x)
    two.merge_adapter()
    weight = mora_layers(two)["0"].base_layer.weight
    assert (weight - make_mlp()[0].weight).abs().max() > 0.01
    assert_close(two(x), adapted)
    two.unmerge_adapter()
    assert_close(weight, make_mlp()[0].weight, tolerance=1e-6)
    assert_close(two(x), adapted)


def test_merging_twice_warns_and_adds_once(layer):
    layer.merge()
    once = layer.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="All adapters are already merged"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, once)
    assert layer.merged_adapters == ["default"]


def test_unmerging_what_is_not_merged_warns_and_changes_nothing(layer):
    before = layer.base_layer.weight.clone()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    assert torch.equal(layer.base_layer.weight, before)


def test_a_named_adapter_is_merged_while_another_is_active(two, x):
    two.set_adapter("second")
    expected = two(x)
    two.set_adapter("default")
    assert_close(two.merge_and_unload(adapter_names=["second"])(x), expected)


def test_merge_and_unload_leaves_a_plain_model_with_the_same_output(two, x, mora_layers):
    two.base_model.set_adapter(["default", "second"])
    expected = two(x)
    plain = two.merge_and_unload(safe_merge=True)
    assert [type(m) for m in plain] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert_close(plain(x), expected)


def test_unload_gives_the_base_model_back(two, make_mlp, x):
    assert torch.equal(two.unload()(x), make_mlp()(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_of_values_that_are_not_finite_raises_and_touches_nothing(value, layer):
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.mora_M["default"].weight[0, 0] = value
    with pytest.raises(
        ValueError, match=r"(NaNs|Infinite numbers) detected in the merged weights\. The adapter default"
    ):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged


def test_a_safe_merge_sees_a_sum_that_overflows_the_dtype_of_the_base(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp(torch.float16)))["0"]
    with torch.no_grad():
        layer.base_layer.weight.fill_(60_000)
        layer.mora_M["default"].weight.fill_(60_000)
    with pytest.raises(ValueError, match=r"or torch\.float16 cannot hold the sum"):
        layer.merge(safe_merge=True)
    assert layer.base_layer.weight.isfinite().all()


def test_a_bfloat16_base_is_merged_in_float32_and_rounded_once(make_mlp, adapt, mora_layers):
    layer = mora_layers(adapt(make_mlp(torch.bfloat16)))["2"]
    delta = layer.operator["default"].delta_weight(layer.mora_M["default"].weight.detach())
    expected = (layer.base_layer.weight.float() + delta).bfloat16()
    rounded_twice = (layer.base_layer.weight.float() + delta.bfloat16().float()).bfloat16()
    assert not torch.equal(expected, rounded_twice)
    layer.merge()
    assert torch.equal(layer.base_layer.weight, expected)


@pytest.mark.parametrize(
    "compute",
    [
        lambda base: parametrizations.weight_norm(base),
        lambda base: utils.weight_norm(base),  # by a hook, which computes it at each call
        lambda base: prune.l1_unstructured(base, "weight", amount=0.5),
    ],
    ids=["parametrised", "weight_norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_a_merge_into_a_weight_that_is_computed_from_others_raises(compute, layer, x):
    compute(layer.base_layer)
    before, weight = layer(x), layer.base_layer.weight.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"did not take the merged values of adapter 'default'; .*weight_norm, pruning"
    ):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, weight)
    assert torch.equal(layer(x), before)
    assert not layer.merged
