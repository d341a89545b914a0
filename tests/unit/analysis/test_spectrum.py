"""The spectrum of delta W against matrices whose singular values are known, and against real adapters."""

import fcntl
import json
import threading

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from tiny_runs import tiny_config
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, OPTConfig

from mora.adapter import MoraConfig
from mora.analysis import spectrum
from mora.config import run_id, source
from mora.errors import ModelError
from mora.methods import prepare
from mora.models.load import load_model, load_weights

CPU = torch.device("cpu")


def with_singular_values(shape, values):
    left = torch.linalg.qr(torch.randn(shape[0], len(values)))[0]
    right = torch.linalg.qr(torch.randn(shape[1], len(values)))[0]
    return left @ torch.diag(torch.tensor(values)) @ right.T


def test_counts_and_stable_rank_of_known_singular_values():
    torch.manual_seed(0)
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(24, 16) for i in (0, 1)}
    values = [20.0, 5.0, 0.3, 0.11, 0.05]
    tuned = {name: w + with_singular_values(w.shape, values) for name, w in base.items()}
    modules = spectrum.spectra(base, tuned, CPU)
    assert sorted(modules) == ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight"]
    for counts in modules.values():
        assert (counts["above_0.1"], counts["above_1pct"]) == (4, 3)
        assert counts["largest"] == pytest.approx(20, rel=1e-4)
        assert counts["stable_rank"] == pytest.approx(sum(v * v for v in values) / 400, rel=1e-4)
    assert spectrum.by_kind(modules)["q_proj"]["above_0.1"] == 4
    assert spectrum.by_kind(modules)["q_proj"]["layers"] == 2


def test_inputs_that_the_update_leaves_alone_are_counted():
    base = {"model.layers.0.o_proj.weight": torch.zeros(6, 8)}
    tuned = {"model.layers.0.o_proj.weight": torch.eye(6, 8)}
    counts = spectrum.spectra(base, tuned, CPU)["model.layers.0.o_proj.weight"]
    assert (counts["unused_inputs"], counts["stable_rank"]) == (2, pytest.approx(6))


def test_batches_give_what_single_matrices_give():
    torch.manual_seed(0)
    base = {f"model.layers.{i}.up_proj.weight": torch.randn(8, 4) for i in range(5)}
    tuned = {name: w + torch.randn(8, 4) for name, w in base.items()}
    singly = {n: spectrum.spectra({n: base[n]}, {n: tuned[n]}, CPU)[n]["largest"] for n in base}
    together = spectrum.spectra(base, tuned, CPU)
    assert {n: counts["largest"] for n, counts in together.items()} == pytest.approx(singly)
    assert [len(b) for b in spectrum._by_shape(list(base), base, tuned, at_once=64)] == [2, 2, 1]


def test_other_architectures_are_refused_in_one_line():
    with pytest.raises(ModelError, match="one architecture"):
        spectrum.spectra({"model.layers.0.a.weight": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}, CPU)
    name = "model.layers.0.a.weight"
    with pytest.raises(ModelError, match=r"BASE has \(2, 2\), TUNED \(2, 3\)"):
        spectrum.spectra({name: torch.zeros(2, 2)}, {name: torch.zeros(2, 3)}, CPU)


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_an_adapter_folder_gives_the_rank_that_its_method_allows(tmp_path, method, capsys):
    config = tiny_config(method)
    model, _ = load_model(config.model, "fp32")
    model.save_pretrained(tmp_path / "base")
    adapted = prepare(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    out = tmp_path / "spectrum.json"
    assert spectrum.main([str(tmp_path / "base"), str(tmp_path / "adapter"), "--out", str(out), "--device", "cpu"]) == 0
    kinds = json.loads(out.read_text())["kinds"]
    assert kinds["q_proj"]["above_0.1"] == (4 if method == "lora" else 16)  # r=4 on 32 x 32: r_hat = 16
    assert "q_proj" in capsys.readouterr().out


def test_the_merged_model_gives_what_its_adapter_gives(tmp_path):
    config = tiny_config("mora")
    model, _ = load_model(config.model, "fp32")
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, MoraConfig(r=4, target_modules="all-linear", init_weights=False))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    base = load_weights(str(tmp_path / "base"), "fp32")
    one, other = (
        spectrum.spectra(spectrum._weights(base), spectrum._tuned_weights(str(tmp_path / name), base), CPU)
        for name in ("adapter", "merged")
    )
    assert [m["largest"] for m in one.values()] == pytest.approx([m["largest"] for m in other.values()], rel=1e-4)


def test_an_adapter_of_another_base_is_refused(tmp_path, capsys):
    model, _ = load_model(tiny_config("mora").model, "fp32")
    model.save_pretrained(tmp_path / "base")
    get_peft_model(model, MoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    assert spectrum.main(["smollm2_shape_that_is_not_there", str(tmp_path / "adapter"), "--device", "cpu"]) == 2
    assert spectrum.main(["tiny", str(tmp_path / "adapter"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert f"adapter '{tmp_path}/adapter' does not load into BASE: Error(s) in loading state_dict" in error


OTHERS = {  # a tiny model of other names -> its kinds of modules
    "gpt2": (
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_inner=48, vocab_size=50, bos_token_id=0, eos_token_id=0),
        {"c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"},
    ),
    "opt": (
        OPTConfig(
            hidden_size=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, word_embed_proj_dim=16
        ),
        {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
    ),
    "gpt_neox": (
        GPTNeoXConfig(
            hidden_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
        ),
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_models_whose_modules_have_other_names(name, tmp_path):
    config, kinds = OTHERS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            if "lora_A" in key:
                p[:, :5] = 0
    adapted.save_pretrained(str(tmp_path / "adapter"))
    pair = spectrum.of_models(str(tmp_path / "base"), str(tmp_path / "adapter"))
    by_kind = spectrum.by_kind(spectrum.spectra(pair.base, pair.tuned, CPU))
    assert set(by_kind) == kinds, "every linear module, without the head and the embeddings"
    for values in by_kind.values():
        assert values["layers"] == 2
        assert values["above_1pct"] == 2
        assert values["unused_inputs"] == 5


def test_two_architectures_are_refused_in_one_line(tmp_path, capsys):
    for name in ("gpt2", "opt"):
        AutoModelForCausalLM.from_config(OTHERS[name][0]).save_pretrained(tmp_path / name)
    assert spectrum.main([str(tmp_path / "gpt2"), str(tmp_path / "opt"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("mora.analysis.spectrum: BASE and TUNED have no linear module of one name in common")


@pytest.fixture
def run(tmp_path):
    """The folder of a run that was done."""
    config = tiny_config("lora")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    prepare(load_model(config.model, "fp32")[0], config).save_pretrained(str(folder / "adapter"))
    return folder, config


def test_a_spectrum_says_of_which_run_and_models_it_is_and_by_which_source(run, tmp_path):
    folder, config = run
    out = tmp_path / "spectra" / "one.json"
    assert spectrum.main(["--run", str(folder), "--out", str(out), "--device", "cpu"]) == 0
    written = json.loads(out.read_text())
    assert (written["run_id"], written["source"]) == (run_id(config), source.of_this_process())
    base = spectrum._weights(load_model(config.model, "fp32")[0])
    assert written["base"] == {"name": config.model.name, "sha256": spectrum.fingerprint(base)}
    assert written["tuned"]["name"] == f"{run_id(config)}/adapter"
    one_changed = {**base, "model.layers.0.mlp.up_proj.weight": base["model.layers.0.mlp.up_proj.weight"] + 1e-3}
    assert len({spectrum.fingerprint(w) for w in (base, one_changed, dict(list(base.items())[1:]))}) == 3


def test_two_processes_do_not_both_measure_one_run(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    out = tmp_path / "one.json"
    monkeypatch.setattr(spectrum, "_measure", lambda *_: pytest.fail("measured what another process measures"))
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = []
        second = threading.Thread(target=lambda: ended.append(spectrum.main(["--run", str(folder), "--out", str(out)])))
        second.start()
        second.join(1)
        assert second.is_alive(), "it waits for the first"
        out.write_text("{}")
    second.join()
    assert (ended, out.read_text()) == ([0], "{}")
    assert "exists already" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert spectrum.main(["--run", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
