"""Ten families of models, tiny and random: whatever is computed in a faster way is what transformers computes."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from mora.config import ConfigError, compose
from mora.data.batches import IGNORE, Batch, Sample, collate, end_to_end
from mora.errors import ModelError
from mora.evaluate.backend import Backend
from mora.evaluate.response_cache import ResponseCache
from mora.methods import merged, prepare
from mora.models import fused_loss, structure
from mora.models.fused import built_as_llama
from mora.models.load import load_any, load_model
from mora.models.losses import token_losses
from mora.models.shapes import shape_of
from mora.models.tokenizers import character_tokenizer
from mora.planner.cost import cost
from mora.train import teacher_forced
from mora.train.engines import make_engine
from mora.train.save_model import save_model

WIDTHS = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 104, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 104,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = WIDTHS | {"ffn_dim": 48, "word_embed_proj_dim": 32}
FAMILIES = {  # fields; whether the head is a product; the length up to which no mask is needed; whether it is as a Llama is
    "llama": (WIDTHS | {"tie_word_embeddings": True}, True, 20, True),
    "qwen2": (WIDTHS, True, 20, True),
    "qwen3": (WIDTHS | {"head_dim": 16}, True, 20, True),
    "mistral": (WIDTHS | {"sliding_window": 16}, True, 8, True),
    "gemma": (WIDTHS | {"head_dim": 8}, True, 20, False),
    "gemma2": (WIDTHS | {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 2.0}, False, 0, False),
    "phi3": (WIDTHS, True, 20, False),
    "gpt2": (GPT2, True, 20, False),
    "opt": (OPT, False, 20, False),
    "gpt_neox": (WIDTHS, True, 20, False),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of a family's checkpoint, with a tokenizer, as a user would have it."""

    def made(family):
        folder = tmp_path_factory.getbasetemp() / "families" / family
        if not folder.is_dir():
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **FAMILIES[family][0])
            model = AutoModelForCausalLM.from_config(config)
            for name, p in model.named_parameters():  # so large that attention and logits say something
                if p.ndim > 1:
                    nn.init.normal_(p, std=0.3)
                elif "bias" in name:
                    nn.init.normal_(p, std=0.1)
            model.save_pretrained(folder)
            character_tokenizer().save_pretrained(folder)
        return folder

    return made


def run_of(folder, *more):
    return compose(["task=uuid", "scale=smoke", "model=custom", f"model.path={folder}", *more])


def batch_of(length=20, rows=3):
    ids = torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = IGNORE
    return Batch(ids, labels)


def usual(model, batch):
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_and_paths_are_those_that_are_right(family, folder_of):
    model = load_model(run_of(folder_of(family), "method=none").model, "fp32")[0].eval()
    batch = batch_of()
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, batch).flatten(), usual(model, batch), rtol=1e-4, atol=1e-4)
    _, product, longest, as_llama = FAMILIES[family]
    assert (structure.plain_head(model) is not None) == product
    assert [n for n in (0, 8, 20) if not n or structure.needs_no_mask(model, n)][-1] == longest
    assert built_as_llama(model) == as_llama


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_end_to_end_have_the_losses_and_gradients_of_padded_ones(family, folder_of):
    model = load_model(run_of(folder_of(family), "method=none").model, "fp32")[0].requires_grad_(True)
    ids = batch_of(rows=4).input_ids.tolist()
    samples = [Sample(row[:n], [IGNORE] * 2 + row[2:n]) for row, n in zip(ids, (20, 7, 13, 1), strict=True)]

    def losses_and_gradients(batch):
        losses = token_losses(model, batch)
        losses.sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return losses[losses != 0], gradients

    padded, expected = losses_and_gradients(collate(samples, 0))
    row = end_to_end(samples, 0, 64, slots=6)
    assert row.input_ids.shape == (1, 64)
    assert row.bounds.tolist() == [0, 20, 27, 40, 41, 64, 64, 64]
    _, _, longest, _ = FAMILIES[family]
    assert structure.trains_without_padding(model) == (longest == 20)
    if longest < 20:
        return  # a window, or logits that follow from more than a product of the hidden states
    losses, gradients = losses_and_gradients(row)
    torch.testing.assert_close(losses, padded, rtol=1e-4, atol=1e-4)
    assert len(losses) == 18 + 5 + 11
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_likelihoods_after_a_shared_beginning_are_those_of_whole_inputs(family, folder_of, monkeypatch):
    """Positions, rotary embeddings and masks go on where the beginning ends; a narrower window is not tried."""
    model, tokenizer = load_model(run_of(folder_of(family), "method=none").model, "fp32")
    beginning = batch_of(rows=1).input_ids[0].tolist()
    requests = [(("", ""), [*beginning, i, *range(50, 50 + i)], [7, 8]) for i in range(5, 13)]

    def answers(worth):
        monkeypatch.setattr("mora.evaluate.shared_prefixes.WORTH", worth)
        scored = Backend(model, tokenizer, 3, 64, ResponseCache(None, ""))._loglikelihood_tokens(requests, True)
        return torch.tensor([nats for nats, _ in scored])

    torch.testing.assert_close(answers(1), answers(1 << 30), rtol=1e-4, atol=1e-4)
    _, product, longest, _ = FAMILIES[family]
    assert structure.continues_from_cache(model) == (product and longest == 20)


def test_layers_that_are_fused_already_are_known(folder_of):
    """liger-kernel's classes stay in transformers' module, so the process's next model is made with them."""
    model = load_model(run_of(folder_of("qwen2"), "method=none").model, "fp32")[0]
    for layer in model.model.layers:
        fused = torch.nn.Module()
        fused.__class__ = type("LigerSwiGLUMLP", (torch.nn.Module,), {"__module__": "liger_kernel.transformers.swiglu"})
        fused.gate_proj, fused.up_proj, fused.down_proj = layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj
        layer.mlp = fused
    assert built_as_llama(model)
    layer.mlp.__class__ = torch.nn.Module
    assert not built_as_llama(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["mora", "lora"])
def test_a_family_trains_two_steps_merges_and_evaluates(family, method, folder_of, tmp_path):
    config = run_of(folder_of(family), f"method={method}", "r=2", "method.adapter.dropout=0")
    assert config.model.name == family
    model, tokenizer = load_model(config.model, "fp32")
    before = {name: p.clone() for name, p in model.named_parameters()}
    model = prepare(model, config)
    head = model.get_base_model().get_output_embeddings()
    assert type(head) is nn.Linear  # all linear modules but the head
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == cost(config).trainable
    engine, batch = make_engine(model.train(), config), batch_of()
    losses = []
    for _ in range(3):
        losses.append(float(engine.backward(batch, 3 * 16)))
        engine.step(1e-2, 1.0)
    assert losses[2] < losses[0]
    model.eval()
    with torch.no_grad():
        trained = token_losses(model, batch)
        with merged(model, torch.float32):
            torch.testing.assert_close(token_losses(model, batch), trained, rtol=1e-3, atol=1e-3)
    changed = [n for n, p in model.get_base_model().named_parameters() if n in before and not torch.equal(p, before[n])]
    assert not changed
    with engine.materialized():
        save_model(engine.model, tokenizer, config, tmp_path)
    loaded, _ = load_any(str(tmp_path / "adapter"), "fp32")
    with torch.no_grad():
        torch.testing.assert_close(token_losses(loaded.eval(), batch), trained, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_knows_a_folders_parameters(family, folder_of):
    config = run_of(folder_of(family), "method=fft")
    model = AutoModelForCausalLM.from_pretrained(folder_of(family))
    assert shape_of(config.model).parameters == sum(p.numel() for p in model.parameters())
    needs = cost(config)
    assert needs.trainable == shape_of(config.model).parameters
    assert math.isfinite(needs.memory.gpu)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt"])
def test_a_restart_merges_whatever_way_round_a_weight_lies(family, folder_of):
    from mora.train.restart import RunRestarts

    config = run_of(
        folder_of(family), "method=remora", "r=2", "method.restart.every_steps=2", "method.restart.warmup_steps=1"
    )
    model = prepare(load_model(config.model, "fp32")[0], config).eval()
    engine = make_engine(model, config)
    restarts, batch = RunRestarts(engine, config), batch_of()
    for layer in restarts.layers:
        for p in layer.adapter.values():
            engine.assign(p, torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    with torch.no_grad():
        before = token_losses(model, batch)
        restarts.apply()
        torch.testing.assert_close(token_losses(model, batch), before, rtol=1e-3, atol=1e-3)


def test_a_model_without_a_linear_module_is_refused(folder_of):
    config = run_of(folder_of("gpt2"), "method=lora", "r=2")
    with pytest.raises(ConfigError, match="the model has no linear module beside its head"):
        prepare(nn.Sequential(nn.Embedding(3, 4)), config)


def test_a_tokenizer_without_an_end_token_is_refused(folder_of, tmp_path):
    import shutil

    folder = shutil.copytree(folder_of("llama"), tmp_path / "blunt")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (path := folder / name).is_file():
            values = {k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}
            path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="has no EOS token, which ends a text: set eos_token in its") as error:
        load_model(run_of(folder, "method=none").model, "fp32")
    assert "\n" not in str(error.value)


def test_asking_a_model_leaves_nothing_behind(folder_of):
    model = load_model(run_of(folder_of("gpt2"), "method=none").model, "fp32")[0].train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    structure.fast_paths(model, True, False, True)
    structure.trains_without_padding(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(module.training for module in model.modules())
    assert "forward" not in model.base_model.__dict__
    assert model.config._attn_implementation == "sdpa"


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made within."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_no_full_logits_are_made_anywhere(family, tied, monkeypatch):
    vocabulary, rows, length = 3000, 4, 24
    fields = FAMILIES[family][0] | {"vocab_size": vocabulary, "tie_word_embeddings": tied, "sliding_window": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).requires_grad_(False).eval()
    config = compose(["task=uuid", "method=mora", "r=2", "scale=smoke"])
    engine = make_engine(prepare(model, config), config)
    monkeypatch.setattr(fused_loss, "CHUNK_BYTES", 4 * vocabulary * 10)
    ids = torch.randint(3, 100, (rows, length))
    samples = [Sample(row, row, n_prompt=2) for row in ids.tolist()]
    response_cache = ResponseCache(None, "")
    backend = Backend(engine.model, character_tokenizer(), rows, 64, response_cache)
    engine.backward(Batch(ids, ids), rows * length)  # the model has been asked what it allows
    with Largest() as largest:
        engine.backward(Batch(ids, ids), rows * length)
        teacher_forced.score(engine, samples, 0, rows)
        teacher_forced.validation_loss(engine, samples, 0, rows)
        asked = [(("a", "b"), row[:4], row[4:]) for row in ids.tolist()]
        assert len(backend._loglikelihood_tokens(asked, disable_tqdm=True)) == rows
    assert vocabulary * 10 <= largest.numbers <= max(vocabulary * length, vocabulary * 32)  # a chunk, a row, the head
