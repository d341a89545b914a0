"""LoRA and its kin against a plain PEFT + torch loop, written here from the papers with no piece of the suite."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from tiny_runs import random_batches, tiny_config, tiny_engine, train_step
from torch.nn import functional as F

from mora.models.load import load_model

STEPS, LR = 8, 3e-3


def plain_losses(config, options):
    batches = random_batches()
    model, _ = load_model(config.model, "fp32")
    torch.manual_seed(config.seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=targets, **options.get("lora", {})))
    if ratio := options.get("ratio"):
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=ratio)
    else:
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        ids = torch.tensor([batches.samples[i].input_ids for i in batches.indices(step)])
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("lora_plus", {"ratio": 2.0}),
        ("dora", {"lora": {"use_dora": True}}),
    ],
)
def test_a_run_equals_a_plain_peft_and_torch_loop_step_by_step(method, options):
    config = tiny_config(method)
    engine, batches = tiny_engine(config), random_batches()
    ours = [train_step(engine, batches, step, LR) for step in range(STEPS)]
    assert ours == pytest.approx(plain_losses(config, options), rel=1e-5)
    assert ours[-1] < ours[0] - 0.01


def test_lora_plus_differs_from_lora_in_the_rate_of_b_alone():
    engine = tiny_engine(tiny_config("lora_plus", "method.adapter.lr_ratio=4"))
    scales = {g.lr_scale: {n.split(".")[-3] for n in g.parameters} for g in engine.groups}
    assert scales == {1.0: {"lora_A"}, 4.0: {"lora_B"}}


def test_in_lora_plus_what_has_one_dimension_has_the_rate_of_b_as_in_peft():
    engine = tiny_engine(tiny_config("lora_plus", "method.adapter.lr_ratio=4"), rest=True)
    scales = {name.split(".")[-2]: g.lr_scale for g in engine.groups if not g.adapter for name in g.parameters}
    norms = ("norm", "input_layernorm", "post_attention_layernorm")
    assert scales == {"embed_tokens": 1.0, "lm_head": 1.0, **dict.fromkeys(norms, 4.0)}


def test_the_first_adapter_is_a_function_of_the_seed_alone():
    def first(seed):
        engine = tiny_engine(tiny_config("lora", f"seed={seed}"))
        return torch.cat([p.detach().flatten() for name, p in engine.parameters.items() if "lora_A" in name])

    a = first(0)
    torch.rand(1)
    assert torch.equal(first(0), a)
    assert not torch.equal(first(1), a)


@pytest.mark.parametrize(("alpha", "scaling"), [("null", 16 / 4), ("6", 6 / 4)])
def test_the_alpha_of_the_method_goes_before_that_of_the_rank(alpha, scaling):
    model = tiny_engine(tiny_config("lora", f"method.adapter.lora_alpha={alpha}")).model
    assert {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)} == {scaling}


@pytest.mark.parametrize("width", [32, 96])
def test_asylora_starts_with_orthonormal_rows_that_train_unless_frozen(width):
    wide = f"model.architecture.intermediate_size={width}"
    for frozen in (False, True):
        engine = tiny_engine(tiny_config("asylora", wide, f"method.adapter.freeze_a={frozen}"))
        first = {n: p.detach().clone() for n, p in engine.model.named_parameters() if "lora_A" in n}
        assert len(first) == 7
        for a in first.values():
            assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-5)
        for step in range(2):
            train_step(engine, random_batches(), step, LR)
        moved = [not torch.equal(p, first[n]) for n, p in engine.model.named_parameters() if n in first]
        assert all(moved) if not frozen else not any(moved)


def test_the_norms_of_dora_train_and_are_in_fp32():
    engine = tiny_engine(tiny_config("dora"), torch.bfloat16)
    magnitudes = [p for n, p in engine.parameters.items() if "magnitude" in n]
    assert len(magnitudes) == 7
    assert {m.dtype for m in engine.masters.values()} == {torch.float32}


def test_methods_print_as_many_parameters_as_lora_of_the_same_rank_and_say_where_not():
    count = {m: sum(p.numel() for p in tiny_engine(tiny_config(m)).parameters.values()) for m in METHODS}
    assert count["lora"] == count["lora_plus"] == count["asylora"] == count["relora"] < count["dora"]
    assert count["mora"] == count["remora"] <= count["lora"]


METHODS = ("lora", "lora_plus", "asylora", "dora", "relora", "mora", "remora")
