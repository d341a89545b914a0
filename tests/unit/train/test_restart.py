"""The restart in one process: what it must change, what it must leave alone, and that its checks can fail."""

import pytest
import torch
from tiny_runs import random_batches, tiny_config, tiny_engine, train_step

from mora.errors import ConfigError
from mora.models.losses import token_losses
from mora.restarts.restart import RestartFailed, round_stochastically
from mora.train.restart import RunRestarts

EVERY = ["method.restart.every_steps=4", "method.restart.warmup_steps=1"]
LR = 3e-3


def set_up(method="relora", *overrides, dtype=torch.float32, rest=False):
    config = tiny_config(method, *EVERY, *overrides)
    engine = tiny_engine(config, dtype, rest=rest)
    return engine, RunRestarts(engine, config), random_batches()


def adapted(engine):
    return tiny_config("relora", *EVERY).method.adapter.restarted_layers(engine.model)


def loss_of(engine, batches):
    with torch.no_grad():
        return sum(token_losses(engine.model, batch).mean().item() for batch in batches.micro_batches(0))


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_in_fp32_the_output_is_unchanged_and_still_so_after_a_step_at_rate_zero(method):
    engine, restarts, batches = set_up(method)
    untrained = loss_of(engine, batches)
    for step in range(4):
        train_step(engine, batches, step, LR)
    before = loss_of(engine, batches)
    assert abs(before - untrained) > 1e-2
    restarts.apply()
    assert loss_of(engine, batches) == pytest.approx(before, rel=1e-5)
    train_step(engine, batches, 4, 0.0)
    assert loss_of(engine, batches) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("method", ["relora", "remora"])
def test_moments_and_step_of_the_adapter_are_zero_and_those_of_norms_and_embeddings_survive(method):
    engine, restarts, batches = set_up(method, rest=True)
    for step in range(4):
        train_step(engine, batches, step, LR)
    others = {g.lr_scale: list(g.parameters) for g in engine.groups if not g.adapter}
    assert any("embed_tokens" in n for names in others.values() for n in names)
    assert any("norm" in n for names in others.values() for n in names)
    before = [{k: v.clone() for k, v in s.items()} for s in engine.optimizer_states(adapter=False)]
    assert all(s["step"] == 4 and s["exp_avg_sq"].any() for s in before)
    assert all(s["exp_avg_sq"].any() for s in engine.optimizer_states(adapter=True))
    restarts.apply()
    for state in engine.optimizer_states(adapter=True):
        assert not any(value.any() for value in state.values())
    for old, new in zip(before, engine.optimizer_states(adapter=False), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


def test_in_bf16_the_shadow_is_the_exact_sum_and_the_base_that_shadow_cast_once():
    engine, restarts, batches = set_up("remora", dtype=torch.bfloat16)
    layers = adapted(engine)
    exact = {layer.name: layer.base.detach().double() for layer in layers}
    for step in range(12):
        train_step(engine, batches, step, LR)
        if step % 4 == 3:
            with engine.fp32_masters():
                for layer in layers:
                    exact[layer.name] += layer.delta_weight().double()
            facts = restarts.apply()
            assert 0.8 < facts["restart_kept"] < 1.2
            assert 0 < facts["restart_rounding"] < 1
    for layer in layers:
        shadow = restarts.shadow[layer.name]
        assert layer.base.dtype == torch.bfloat16
        assert torch.equal(layer.base, shadow.to(torch.bfloat16))
        assert (shadow.double() - exact[layer.name]).abs().max() <= 1e-6 * exact[layer.name].abs().max()


def test_stochastic_rounding_keeps_the_expected_value_and_is_one_of_the_two_neighbours():
    wide = torch.full((200_000,), 1.0 + 2**-7 * 0.3)
    rounded = round_stochastically(wide, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert rounded.double().mean().item() == pytest.approx(wide[0].item(), abs=3e-5)
    exact = torch.tensor([0.0, -1.5, 2.0**-20])
    assert torch.equal(round_stochastically(exact, torch.Generator()).float(), exact)


def test_a_small_update_survives_stochastic_rounding_where_nearest_loses_it():
    kept = {}
    for rounding in ("nearest", "stochastic"):
        engine, restarts, _ = set_up("remora", f"method.restart.merge_rounding={rounding}", dtype=torch.bfloat16)
        for layer in adapted(engine):
            engine.assign(layer.adapter["mora_M"], torch.randn(layer.adapter["mora_M"].shape) * 1e-5)
        kept[rounding] = restarts.apply()["restart_kept"]
    assert kept["nearest"] < 0.8
    assert kept["stochastic"] == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("method", "overrides", "ranks"),
    [
        ("relora", [], (4, 8, 12)),  # r, 2 r, 3 r
        ("remora", [], (19, 37, 37)),  # r_hat, then 2 r_hat but for one dimension that both kinds of groups reach
        ("remora", ["method.restart.groups=null"], (19, 19, 19)),
    ],
)
def test_the_rank_of_the_whole_update_grows_as_the_method_says(method, overrides, ranks):
    engine, restarts, batches = set_up(method, "model.architecture.hidden_size=48", *overrides)
    (layer,) = (layer for layer in adapted(engine) if layer.name.endswith("q_proj"))
    first, seen = layer.base.detach().clone(), []
    for step in range(12):
        train_step(engine, batches, step, 1e-2)
        if step % 4 == 3:
            restarts.apply()
            seen.append(int(torch.linalg.matrix_rank((layer.base - first).double(), rtol=1e-5)))
    assert tuple(seen) == ranks


def test_every_restart_and_every_seed_draws_an_a_of_its_own():
    drawn = []
    for seed in (0, 1):
        engine, restarts, _ = set_up("relora", f"seed={seed}")
        for _ in range(2):
            restarts.apply()
            drawn.append(adapted(engine)[0].adapter["lora_A"].detach().clone())
    assert len({tuple(a.flatten().tolist()) for a in drawn}) == 4


def test_the_group_kind_goes_round_and_is_written_to_the_adapter_config():
    engine, restarts, _ = set_up("remora")
    kinds = []
    for _ in range(3):
        restarts.apply()
        kinds.append(engine.model.peft_config["default"].groups)
        assert {m.operator["default"].groups for m in engine.model.modules() if hasattr(m, "operator")} == {kinds[-1]}
    assert kinds == ["contiguous", "modulo", "contiguous"]


def test_stale_masters_bring_the_old_adapter_back_with_the_next_update():
    changes = {}
    for stale in (False, True):
        engine, restarts, batches = set_up("relora", f"method.restart.stale_masters={stale}")
        for step in range(4):
            train_step(engine, batches, step, LR)
        (b,) = (p for n, p in engine.parameters.items() if "q_proj.lora_B" in n)
        old = b.detach().clone()
        before = loss_of(engine, batches)
        restarts.apply()
        assert not b.any()
        train_step(engine, batches, 4, 1e-5)
        similar = torch.cosine_similarity(b.detach().flatten(), old.flatten(), dim=0).item()
        changes[stale] = similar, abs(loss_of(engine, batches) - before)
    assert changes[True][0] > 0.999
    assert changes[False][0] < 0.9
    assert changes[True][1] > 10 * changes[False][1]


def test_a_frozen_half_of_an_adapter_cannot_restart():
    with pytest.raises(ConfigError, match=r"method\.adapter\.freeze_a=true: a restart draws A anew"):
        set_up("relora", "method.adapter.freeze_a=true")


@pytest.mark.parametrize(
    ("sabotage", "expected"),
    [
        ("moments", "moments or step of the adapter are not zero"),
        ("others", "moments of parameters outside the adapter were changed"),
        ("values", "does not have its first values|still adds to the output"),
        ("base", "did not take the merged values"),
        ("nan", "is not finite"),
    ],
)
def test_a_restart_that_did_not_take_stops_the_run(sabotage, expected, monkeypatch):
    engine, restarts, batches = set_up("relora", rest=True)
    for step in range(4):
        train_step(engine, batches, step, LR)
    layer = adapted(engine)[0]
    if sabotage == "moments":
        states = engine.optimizer_states
        copied = lambda adapter: [{k: v.clone() for k, v in s.items()} for s in states(adapter)]  # noqa: E731
        monkeypatch.setattr(engine, "optimizer_states", copied)
    elif sabotage == "others":
        monkeypatch.setattr(engine, "computation_changed", lambda: engine.optimizer_states(False)[0]["exp_avg"].add_(1))
    elif sabotage == "values":
        monkeypatch.setattr(engine, "assign", lambda *_, **__: None)
    elif sabotage == "base":
        monkeypatch.setattr(restarts, "_cast", lambda shadow, *_: shadow + float("nan"))
    else:
        layer.adapter["lora_B"].data.fill_(float("nan"))
    with pytest.raises(RestartFailed, match=expected):
        restarts.apply()


def test_a_master_that_was_not_renewed_stops_the_run(monkeypatch):
    engine, restarts, batches = set_up("relora", dtype=torch.bfloat16)
    for step in range(4):
        train_step(engine, batches, step, LR)
    monkeypatch.setattr(engine, "assign", lambda parameter, value, **_: parameter.data.copy_(value))
    with pytest.raises(RestartFailed, match=r"the optimizer's copy of lora_A of .* was not renewed"):
        restarts.apply()


def test_saved_and_loaded_state_goes_on_as_if_never_stopped():
    engine, restarts, batches = set_up("remora", "method.restart.merge_rounding=stochastic", dtype=torch.bfloat16)
    for step in range(4):
        train_step(engine, batches, step, LR)
    restarts.apply()
    saved = {k: v for k, v in engine.state_dict().items()}
    saved = torch.utils._pytree.tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, saved)
    other, again, _ = set_up("remora", "method.restart.merge_rounding=stochastic", dtype=torch.bfloat16)
    again.load_state_dict(restarts.state_dict())
    other.load_state_dict(saved)
    curves = [[train_step(e, batches, step, LR) for step in range(4, 8)] for e in (engine, other)]
    assert curves[0] == curves[1]
    assert other.model.peft_config["default"].groups == "contiguous"
