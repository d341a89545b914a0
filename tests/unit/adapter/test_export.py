"""mora-export, and what a saved adapter says of itself."""

from __future__ import annotations

import json
import re

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForCausalLM,
    RobertaForSequenceClassification,
)

import mora
from mora.adapter import merged_base
from mora.adapter.export import ExportError, conversion_errors, export, main
from mora.adapter.export import load as export_load
from mora.adapter.merged_base import FILE


@pytest.fixture
def saved(make_llama, adapt, tokens, tmp_path):
    """(folder of the base, folder of the adapter, logits of the adapted model)."""
    make_llama().save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), target_modules=["q_proj", "down_proj"])
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", model.eval()(tokens).logits


def test_the_merged_model_needs_no_mora(saved, tokens, tmp_path, capsys):
    _, adapter, expected = saved
    main([str(adapter), str(tmp_path / "out"), "--to", "merged"])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert capsys.readouterr().out == f"written: {tmp_path / 'out'}\n"


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("labels_of_base", [None, 5])
@pytest.mark.parametrize(
    "kind", [BertForSequenceClassification, RobertaForSequenceClassification, BertForTokenClassification]
)
def test_a_classifier_is_exported_with_the_labels_that_it_was_trained_with(
    kind, labels_of_base, labels, adapt, tokens, tmp_path
):
    config = kind.config_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64, pad_token_id=63
    )
    if labels_of_base:
        config.num_labels = labels_of_base
    base = kind(config)
    (base if labels_of_base else base.base_model).save_pretrained(tmp_path / "base")
    model = adapt(
        kind.from_pretrained(tmp_path / "base", num_labels=labels, ignore_mismatched_sizes=True),
        target_modules=["query", "value"], task_type="TOKEN_CLS" if kind is BertForTokenClassification else "SEQ_CLS",
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "adapter"), str(tmp_path / "out"), "merged")
    merged = kind.from_pretrained(tmp_path / "out")
    assert merged.config.num_labels == labels
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_the_lora_has_the_error_that_was_printed(saved, tmp_path, capsys):
    base, adapter, _ = saved
    main([str(adapter), str(tmp_path / "out"), "--to", "lora", "--rank", "8", "--base", str(base)])
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:-1])
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 8)
    lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    lost = total = 0.0
    deltas = {n: m.get_delta_weight("default") for n, m in whole.named_modules() if hasattr(m, "mora_M")}
    for name, module in lora.named_modules():
        if hasattr(module, "lora_A"):
            lost += (deltas[name] - module.get_delta_weight("default")).square().sum().item()
            total += deltas[name].square().sum().item()
    assert float(printed["8"]) == pytest.approx((lost / total) ** 0.5, abs=1e-4)
    assert float(printed["8"]) > 0.1
    errors = conversion_errors(whole, [4, 8, 17])
    assert errors[4] > errors[8] > errors[17]
    assert errors[17] == pytest.approx((0, 0), abs=1e-6)  # r_hat = sqrt((96 + 64) 2) = 17


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "down_proj"], r".*\.(q|k|down)_proj"])
def test_a_lora_with_the_rank_that_the_card_names_is_exact_where_a_layer_is_smaller(
    targets, make_llama, adapt, tokens, tmp_path, capsys
):
    make_llama().save_pretrained(tmp_path / "base")
    model = adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), r=10, target_modules=targets)
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    rank = int(re.search(r"exact with R = (\d+)", card)[1])
    assert rank == 40, "sqrt((96 + 64) 10); k_proj is 64 x 32"
    main([str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "lora", "--rank", str(rank)])
    assert f"{rank:6}   0.0000       0.0000" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (40, 40, {}, {})
    lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    torch.testing.assert_close(lora(tokens).logits, model.eval()(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--to", "lora"], "rank=None: a LoRA needs a positive integer, .* takes it as --rank"),
        (["--to", "merged", "--base", "nowhere"], "the base model nowhere cannot be read"),
        (["--to", "lora", "--rank", "65"], "rank=65: the largest layer has a rank of 64 at most"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, why, saved, tmp_path):
    with pytest.raises(SystemExit, match=f"mora-export: .*{why}"):
        main([str(saved[1]), str(tmp_path / "out"), *arguments])


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def with_field(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_tensors(path, change):
    tensors = load_file(path)
    change(tensors, min(tensors))
    save_file(tensors, path)


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DAMAGES = {
    "no weights": (lambda a, b: (a / WEIGHTS).unlink(), f"adapter has no {WEIGHTS}"),
    "cut weights": (lambda a, b: cut(a / WEIGHTS), f"{WEIGHTS} of .* cannot be read: "),
    "empty weights": (lambda a, b: (a / WEIGHTS).write_bytes(b""), f"{WEIGHTS} of .* cannot be read: "),
    "a tensor less": (
        lambda a, b: with_tensors(a / WEIGHTS, lambda tensors, first: tensors.pop(first)),
        f"{WEIGHTS} of .* has no weights for model.layers.0.mlp.down_proj$",
    ),
    "NaN": (
        lambda a, b: with_tensors(a / WEIGHTS, lambda tensors, first: tensors[first].fill_(float("nan"))),
        "M of model.layers.0.mlp.down_proj is NaN or infinite",
    ),
    "r": (lambda a, b: with_field(a / CONFIG, r=5), f"{CONFIG} and the base model .* do not fit together: .* mismatch"),
    "no target": (lambda a, b: with_field(a / CONFIG, target_modules=["x"]), f"{CONFIG} and .*: .* {{'x'}} not found"),
    "pattern": (lambda a, b: with_field(a / CONFIG, target_modules="(("), f"{CONFIG} and .*[eE]rror: missing \\)"),
    "a target less": (
        lambda a, b: with_field(a / CONFIG, target_modules=["q_proj"]),
        f"weights for modules that .* target_modules of {CONFIG} leaves out: model.layers.0.mlp.down_proj, model.l",
    ),
    "list": (lambda a, b: (a / CONFIG).write_text("[]"), f"no adapter that PEFT can read: {CONFIG}: TypeError: 'list'"),
    "field of LoRA": (lambda a, b: with_field(a / CONFIG, lora_alpha=1), f"{CONFIG}: TypeError: MoraConfig has no"),
    "base without type": (lambda a, b: (b / "config.json").write_text("{}"), "the base model .* read: .* `model_type`"),
    "unknown base": (
        lambda a, b: with_field(b / "config.json", architectures=["Nope"]),
        "the base model .* cannot be read: .* no attribute Nope",
    ),
    "cut base": (lambda a, b: cut(b / "model.safetensors"), "the base model .* cannot be read: Saf"),
}  # fmt: skip


def test_the_folder_around_an_adapter_is_told_where_the_adapter_is(saved, tmp_path):
    around = saved[1].parent
    with pytest.raises(
        ExportError, match=rf"^{around} has no {CONFIG}: .* the folder of an adapter, such as {saved[1]}$"
    ):
        export(str(around), str(tmp_path / "out"), "merged")


@pytest.mark.parametrize("to", [["merged"], ["lora", "--rank", "8"]], ids=["merged", "lora"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_line(damage, to, saved, tmp_path):
    base, adapter, _ = saved
    spoil, why = DAMAGES[damage]
    spoil(adapter, base)
    with pytest.raises(SystemExit, match=f"^mora-export: .*{why}") as refused:
        main([str(adapter), str(tmp_path / "out"), "--to", *to])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"num_hidden_layers": 1},
            "does not have, or .*: model.layers.1.mlp.down_proj, model.layers.1.self_attn.q_proj$",
        ),
        ({"hidden_size": 32}, "do not fit together: .*size mismatch"),
    ],
)
def test_another_base_that_the_adapter_does_not_fit_is_refused(change, why, saved, make_llama, tmp_path):
    config = make_llama().config
    for name, value in change.items():
        setattr(config, name, value)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ExportError, match=why):
        export(str(saved[1]), str(tmp_path / "out"), "merged", base=str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["merged", "lora"])
def test_an_output_that_cannot_be_written_is_one_line(to, saved, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ExportError, match=r"^output .*file/out cannot be created: .*file is no folder"):
        export("an adapter that is not there", str(tmp_path / "file" / "out"), to, rank=8)
    with pytest.raises(ExportError, match=r"/proc/there/out.*: FileNotFoundError: "):
        export(str(saved[1]), "/proc/there/out", to, rank=8)


def test_what_an_adapter_saves_beside_its_matrices_is_no_hindrance(make_llama, adapt, tokens, tmp_path):
    make_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    more = {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [3]}, "bias": "mora_only"}
    model = adapt(base, target_modules=["q_proj"], **more)
    model.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "adapter"), str(tmp_path / "out"), "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(tokens).logits, model.eval()(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"to": "Merged"}, "to='Merged': expected 'merged' or 'lora'"),
        ({"to": "lora"}, "rank=None: a LoRA needs a positive integer, or the share of the energy"),
        ({"to": "lora", "rank": 0}, "rank=0: a LoRA needs"),
        ({"to": "lora", "rank": -8}, "rank=-8: a LoRA needs"),
        ({"to": "lora", "rank": 1.5}, "rank=1.5: a LoRA needs"),
        ({"to": "lora", "rank": True}, "rank=True: a LoRA needs"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(options, why, tmp_path):
    with pytest.raises(ExportError, match=f"^{why}"):
        export("an adapter that is not there", str(tmp_path / "out"), **options)


def test_an_output_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for output, why in ((tmp_path / "file", "is a file"), (tmp_path, "is not empty")):
        with pytest.raises(ExportError, match=f"^output {output} {why}: name a folder that is empty or does not exist"):
            export("an adapter that is not there", str(output), "merged")
    with pytest.raises(SystemExit, match=f"^mora-export: output {tmp_path / 'file'} is a file"):
        main(["an adapter that is not there", str(tmp_path / "file"), "--to", "merged"])


def test_other_adapters_are_refused(make_llama, tmp_path):
    get_peft_model(make_llama(), LoraConfig()).save_pretrained(tmp_path / "lora")
    with pytest.raises(SystemExit, match=r"is a .*LORA adapter, not MoRA: load it with PEFT"):
        main([str(tmp_path / "lora"), str(tmp_path / "out"), "--to", "merged"])


@pytest.fixture
def restarted(saved, tokens):
    """(folder of an adapter after a restart, logits of its model): the merged base lies beside the adapter."""
    base, adapter, _ = saved
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "mora_M")}
    with torch.no_grad():
        for layer in layers.values():
            layer.get_base_layer().weight.add_(0.1)
    merged = {name: layer.get_base_layer().weight.detach() for name, layer in layers.items()}
    model.peft_config["default"].restarted = True
    model.save_pretrained(adapter)
    save_file(merged, adapter / FILE, metadata={"count": "1", "step": "4"})
    return adapter, model(tokens).logits


def test_an_adapter_is_merged_into_the_base_that_its_restarts_left(restarted, tokens, tmp_path, recwarn):
    adapter, expected = restarted
    export(str(adapter), str(tmp_path / "out"), "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert not [w for w in recwarn if "restarts merged" in str(w.message)]


@pytest.mark.parametrize("form", [["merged"], ["lora", "--rank", "8"]])
def test_an_adapter_is_not_exported_without_the_base_that_it_fits(form, restarted, tmp_path):
    (restarted[0] / FILE).unlink()
    with pytest.raises(
        SystemExit, match=r"^mora-export: .* fits a base that restarts have changed.*restarts\.safetensors"
    ):
        main([str(restarted[0]), str(tmp_path / "out"), "--to", *form])


def test_the_merged_base_of_an_adapter_on_the_hub_is_found(restarted, monkeypatch):
    adapter, _ = restarted
    monkeypatch.setattr(merged_base, "hf_hub_download", lambda repo, file: str(adapter / file))
    assert merged_base.find_file("someone/adapter") == adapter / FILE

    def missing(repo, file):
        raise EntryNotFoundError(f"{repo} has no {file}")

    monkeypatch.setattr(merged_base, "hf_hub_download", missing)
    assert merged_base.find_file("someone/adapter") is None


def test_the_hub_is_asked_once_whether_an_adapter_has_a_merged_base(restarted, monkeypatch, tmp_path):
    adapter, asked = str(restarted[0]), []
    monkeypatch.setattr("mora.adapter.export.find_file", lambda name: asked.append(name) or merged_base.find_file(name))
    with pytest.raises(ExportError, match="restarts merged earlier updates"):
        export(adapter, str(tmp_path / "out"), "lora", rank=8)
    assert asked == [adapter]


def test_a_lora_of_an_adapter_after_restarts_is_refused(restarted, tmp_path):
    with pytest.raises(SystemExit, match=r"^mora-export: restarts merged .*restarts\.safetensors.*\(--to merged\)$"):
        main([str(restarted[0]), str(tmp_path / "out"), "--to", "lora", "--rank", "8"])
    assert not (tmp_path / "out").exists()


def test_a_merged_base_of_another_model_is_not_used(restarted, tmp_path):
    save_file({"elsewhere": torch.zeros(2, 2)}, restarted[0] / FILE, metadata={"count": "1", "step": "4"})
    with pytest.raises(
        SystemExit, match=r"^mora-export: .*restarts\.safetensors holds elsewhere, which this model lacks"
    ):
        main([str(restarted[0]), str(tmp_path / "out"), "--to", "merged"])


def test_a_cut_merged_base_is_named(restarted, tmp_path):
    path = restarted[0] / FILE
    path.write_bytes(path.read_bytes()[:500])
    for form in (["merged"], ["lora", "--rank", "8"]):
        with pytest.raises(SystemExit, match=rf"^mora-export: {path} cannot be read, it is cut or damaged: "):
            main([str(restarted[0]), str(tmp_path / "out"), "--to", *form])


def test_the_card_says_what_the_adapter_is_and_needs(saved, make_llama, adapt):
    base, adapter, _ = saved
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.save_pretrained(adapter)  # once more: the section is renewed, not repeated
    card = (adapter / "README.md").read_text()
    assert card.count("## MoRA") == 1
    assert "library_name: peft" in card
    for fact in (str(base), "revision main", "operator sharing, r = 2", "r_hat = 16 (64 x 64), 17 (96 x 64)",
                 "import mora", "KeyError: 'MORA'", "mora-export", "exact with R = 17"):  # fmt: skip
        assert fact in card
    assert json.loads((adapter / "adapter_config.json").read_text())["mora_version"] == mora.__version__
    assert "only that merged base" not in card


def test_the_card_calls_a_lora_of_blocks_an_approximation(make_llama, adapt, tmp_path):
    adapt(make_llama(), operator="rotation", target_modules="all-linear").save_pretrained(tmp_path)
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "`--to lora --rank R`, an approximation, whose error at each rank is printed" in card


def test_the_card_of_a_checkpoint_with_restarts_says_which_base_the_adapter_fits(restarted):
    adapter, _ = restarted
    export_load(str(adapter)).save_pretrained(adapter)
    assert "**only that merged base**" in (adapter / "README.md").read_text()
