"""The spectrum of delta W against matrices whose singular values are known, and against real adapters."""

import json

import pytest
import torch
from peft import get_peft_model
from tiny_runs import tiny_config

from mora.adapter import MoraConfig
from mora.analysis import spectrum
from mora.config.compose import ConfigError
from mora.methods import prepare
from mora.train.model import load_model

CPU = torch.device("cpu")


def with_singular_values(shape, values):
    left = torch.linalg.qr(torch.randn(shape[0], len(values)))[0]
    right = torch.linalg.qr(torch.randn(shape[1], len(values)))[0]
    return left @ torch.diag(torch.tensor(values)) @ right.T


def test_counts_and_stable_rank_of_known_singular_values():
    torch.manual_seed(0)
    base = {f"model.layers.{i}.q_proj.weight": torch.randn(24, 16) for i in (0, 1)}
    base["model.embed_tokens.weight"] = torch.randn(24, 16)
    values = [20.0, 5.0, 0.3, 0.11, 0.05]
    tuned = {name: w + with_singular_values(w.shape, values) for name, w in base.items()}
    modules = spectrum.spectra(base, tuned, CPU)
    assert sorted(modules) == ["model.layers.0.q_proj.weight", "model.layers.1.q_proj.weight"]
    for found in modules.values():
        assert (found["above_0.1"], found["above_1pct"]) == (4, 3)
        assert found["largest"] == pytest.approx(20, rel=1e-4)
        assert found["stable_rank"] == pytest.approx(sum(v * v for v in values) / 400, rel=1e-4)
    assert spectrum.by_kind(modules)["q_proj"]["above_0.1"] == 4
    assert spectrum.by_kind(modules)["q_proj"]["layers"] == 2


def test_inputs_that_the_update_leaves_alone_are_counted():
    base = {"model.layers.0.o_proj.weight": torch.zeros(6, 8)}
    tuned = {"model.layers.0.o_proj.weight": torch.eye(6, 8)}
    found = spectrum.spectra(base, tuned, CPU)["model.layers.0.o_proj.weight"]
    assert (found["unused_inputs"], found["stable_rank"]) == (2, pytest.approx(6))


def test_batches_give_what_single_matrices_give():
    torch.manual_seed(0)
    base = {f"model.layers.{i}.up_proj.weight": torch.randn(8, 4) for i in range(5)}
    tuned = {name: w + torch.randn(8, 4) for name, w in base.items()}
    singly = {n: spectrum.spectra({n: base[n]}, {n: tuned[n]}, CPU)[n]["largest"] for n in base}
    together = spectrum.spectra(base, tuned, CPU)
    assert {n: found["largest"] for n, found in together.items()} == pytest.approx(singly)
    assert [len(b) for b in spectrum._by_shape(list(base), base, tuned, at_once=64)] == [2, 2, 1]


def test_other_architectures_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="one architecture"):
        spectrum.spectra({"model.layers.0.a.weight": torch.zeros(2, 2)}, {"b": torch.zeros(2, 2)}, CPU)
    name = "model.layers.0.a.weight"
    with pytest.raises(ConfigError, match=r"BASE has \(2, 2\), TUNED \(2, 3\)"):
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
    base = spectrum._load(str(tmp_path / "base"))
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


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert spectrum.main(["--run", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
