"""What is written to disk, and what PEFT, transformers, a fresh process and LoRA make of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import peft
import pytest
import torch
from packaging.version import Version
from peft import PeftModel, convert_to_lora, get_peft_model, save_as_lora, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION

from mora import MoraConfig
from mora.adapter import OPERATORS

ROOT = Path(__file__).resolve().parents[3]


def saved_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(path / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def assert_close(actual, expected, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# --- the files -------------------------------------------------------------------------------------------------------


def test_one_tensor_a_layer_is_saved_under_the_name_mora_M(make_llama, adapt, mora_layers, tmp_path):
    model = adapt(make_llama(), target_modules="all-linear")
    model.save_pretrained(tmp_path)
    tensors = saved_tensors(tmp_path)
    assert set(tensors) == {f"{name}.mora_M.weight" for name in mora_layers(model)}
    for name, layer in mora_layers(model).items():
        assert torch.equal(tensors[f"{name}.mora_M.weight"], layer.mora_M["default"].weight)


@pytest.mark.parametrize(("r", "operator"), [(1, "rotation"), (8, "sharing")])
def test_the_saved_config_names_the_operator_that_auto_became(r, operator, tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(576, 576)), MoraConfig(r=r, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["operator"]) == ("MORA", r, operator)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"operator": "truncation"},
        {"operator": "sharing", "groups": "contiguous-modulo", "split": "padded", "pad": "zeros"},
        {"operator": "decouple", "overflow": "fold"},
        {"operator": "rotation", "pairs": "interleaved"},
        {"operator": "sharing", "rhat_rounding": "official", "rank_pattern": {"k_proj": 1}},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_loaded_adapter_gives_the_same_output(options, low_cpu_mem_usage, make_llama, adapt, tokens, tmp_path):
    model = adapt(make_llama(), target_modules="all-linear", **options)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_loaded_adapter_trains_on_where_asked_to(make_mlp, adapt, x, tmp_path):
    adapt(make_mlp()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_mlp(), tmp_path, is_trainable=True)
    model(x).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert set(gradients) == {"base_model.model.0.mora_M.default.weight", "base_model.model.2.mora_M.default.weight"}
    assert all(grad.count_nonzero() > 0 for grad in gradients.values())


def test_modules_to_save_are_trained_and_saved_next_to_the_adapter(make_mlp, adapt, x, tmp_path):
    model = adapt(make_mlp(), modules_to_save=["4"])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    tensors = saved_tensors(tmp_path)
    assert set(tensors) == {"0.mora_M.weight", "2.mora_M.weight", "4.weight", "4.bias"}
    assert not torch.equal(tensors["4.weight"], make_mlp()[4].weight)
    assert torch.equal(PeftModel.from_pretrained(make_mlp(), tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("bias", "biases"), [("mora_only", {"0.base_layer.bias"}), ("all", {"0.base_layer.bias", "2.bias", "4.bias"})]
)
def test_trained_biases_are_saved(bias, biases, make_mlp, adapt, x, tmp_path):
    model = adapt(make_mlp(), target_modules=["0"], bias=bias)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    assert set(saved_tensors(tmp_path)) == {"0.mora_M.weight"} | biases
    assert torch.equal(PeftModel.from_pretrained(make_mlp(), tmp_path)(x), model(x))


def test_an_M_of_another_size_is_refused(make_mlp, adapt, tmp_path):
    adapt(make_mlp()).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file({k: M[:-1, :-1].contiguous() for k, M in tensors.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(RuntimeError, match=r"size mismatch for .*mora_M\.default"):
        PeftModel.from_pretrained(make_mlp(), tmp_path)


# --- transformers ----------------------------------------------------------------------------------------------------

transformers_takes_peft = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"this transformers takes no adapter from PEFT older than {MIN_PEFT_VERSION}",
)


@transformers_takes_peft
def test_transformers_loads_a_saved_adapter_by_itself(make_llama, adapt, tokens, tmp_path):
    model = adapt(make_llama(), target_modules="all-linear", operator="rotation")
    model.save_pretrained(tmp_path)
    plain = make_llama()
    plain.load_adapter(str(tmp_path))
    assert torch.equal(plain(tokens).logits, model(tokens).logits)
    plain.disable_adapters()
    assert torch.equal(plain(tokens).logits, make_llama()(tokens).logits)


@transformers_takes_peft
def test_transformers_adds_and_saves_an_adapter_that_peft_loads(make_llama, tokens, tmp_path):
    plain = make_llama()
    plain.add_adapter(MoraConfig(r=2, target_modules=["q_proj", "v_proj"], operator="sharing", init_weights=False))
    plain.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(make_llama(), tmp_path)(tokens).logits, plain(tokens).logits)


# --- conversion to LoRA ----------------------------------------------------------------------------------------------


def as_lora(model: PeftModel, base: nn.Module, rank: int | float) -> PeftModel:
    config, state_dict = convert_to_lora(model, rank=rank)
    lora = get_peft_model(base, config)
    set_peft_model_state_dict(lora, state_dict)
    return lora


@pytest.mark.parametrize("operator", OPERATORS)
def test_lora_of_full_rank_reproduces_the_output(operator, make_llama, adapt, tokens):
    model = adapt(make_llama(), target_modules=["q_proj", "o_proj"], operator=operator)
    lora = as_lora(model.eval(), make_llama(), rank=64)
    assert (model(tokens).logits - make_llama()(tokens).logits).abs().max() > 0.1
    assert_close(lora(tokens).logits, model(tokens).logits)


def test_lora_reproduces_sharing_at_rank_r_hat_and_not_below(make_llama, adapt, tokens):
    model = adapt(make_llama(), target_modules=["q_proj", "o_proj"])  # r_hat = sqrt((64 + 64) * 2) = 16
    logits = model(tokens).logits
    assert_close(as_lora(model, make_llama(), rank=16)(tokens).logits, logits)
    assert (as_lora(model, make_llama(), rank=12)(tokens).logits - logits).abs().max() > 1e-2


def test_the_error_of_a_conversion_is_the_energy_beyond_its_rank(make_mlp, adapt, mora_layers):
    model = adapt(make_mlp(), target_modules=["2"], operator="rotation")
    _, state_dict = convert_to_lora(model, rank=10)
    A, B = (state_dict[f"base_model.model.2.lora_{part}.weight"] for part in "AB")
    delta = mora_layers(model)["2"].get_delta_weight("default")
    beyond = torch.linalg.svdvals(delta)[10:].square().sum().sqrt()
    assert_close(torch.linalg.norm(delta - B @ A), beyond)
    assert beyond > 0.1


def test_a_lora_saved_from_mora_is_loaded_by_peft(make_llama, adapt, tokens, tmp_path):
    model = adapt(make_llama(), target_modules=["q_proj", "o_proj"]).eval()
    save_as_lora(tmp_path, model, rank=16)
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path)
    assert loaded.peft_config["default"].peft_type == "LORA"
    assert_close(loaded(tokens).logits, model(tokens).logits)


@pytest.fixture
def conversion_script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("lora_conversion_error")


def table_rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]


def test_the_conversion_script_tells_the_energy_beyond_each_rank(conversion_script, mora_layers, tmp_path):
    output = tmp_path / "page.md"
    arguments = ["--shapes", "40x24", "--operators", "sharing", "--ranks", "4", "17", "40", "--r", "5"]
    conversion_script.main([*arguments, "--output", str(output)])
    page = output.read_text()
    assert f"scripts/lora_conversion_error.py {' '.join(arguments)} --output" in page

    (layer,) = mora_layers(conversion_script.random_update(40, 24, "sharing", r=5, seed=0)).values()
    energy = torch.linalg.svdvals(layer.get_delta_weight("default")).square()
    error = (energy[4:].sum() / energy.sum()).sqrt().item()
    # r_hat = floor(sqrt(64 * 5)) = 17; LoRA of rank 40 does not fit a layer of 24 outputs.
    assert table_rows(page) == [f"| 40 x 24 | sharing | 17 | 17 | {error:.3f} | exact |  |"]


def test_the_page_on_conversion_holds_what_the_script_computes(conversion_script):
    rows = table_rows((ROOT / "docs" / "lora_conversion.md").read_text())
    assert len(rows) == 6
    ranks = [8, 16, 32, 64, 96, 128, 129, 256, 512, 576]
    cells = conversion_script.row((576, 576), "sharing", ranks, r=8, seed=0)
    assert rows[0] == f"| {' | '.join(cells)} |"


# --- fresh processes -------------------------------------------------------------------------------------------------

LOOKED_FOR_BEFORE = """
    import mora
    import importlib.util
    assert importlib.util.find_spec("peft") is not None  # as transformers.utils.is_peft_available() does
    import peft
    assert "MORA" in peft.PeftType.__members__
"""
MERGE = """
    import sys
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    model = peft.PeftModel.from_pretrained(base, sys.argv[2])
    assert type(model.peft_config["default"]).__name__ == "MoraConfig"
    model.merge_and_unload(safe_merge=True).save_pretrained(sys.argv[3])
"""
USE_WITHOUT_MORA = """
    import sys
    sys.modules["mora"] = None  # any import of it fails, wherever it is installed
    import torch
    from transformers import AutoModelForCausalLM
    logits = AutoModelForCausalLM.from_pretrained(sys.argv[4])(torch.load(sys.argv[5])).logits
    assert not [name for name in sys.modules if name.startswith("mora.")]
    torch.save(logits, sys.argv[6])
    del sys.modules["mora"]
"""


class Process:
    """A Python process without anything that the tests imported."""

    def __init__(self, code: str, *arguments: Path, cwd: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def succeed(self) -> None:
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, output


def test_a_fresh_process_merges_an_adapter_and_another_uses_the_result_without_mora(
    make_llama, adapt, tokens, tmp_path
):
    """mora may be imported before or after PEFT, which somebody may have looked for before."""
    make_llama().save_pretrained(tmp_path / "base")
    model = adapt(make_llama(), target_modules="all-linear", operator="rotation")
    model.save_pretrained(tmp_path / "adapter")
    torch.save(tokens, tmp_path / "tokens.pt")
    first, second = tmp_path / "mora first", tmp_path / "peft first"
    given = tmp_path / "base", tmp_path / "adapter"
    Process(LOOKED_FOR_BEFORE + MERGE, *given, first, cwd=tmp_path).succeed()
    use = first, tmp_path / "tokens.pt", tmp_path / "logits.pt"
    Process(USE_WITHOUT_MORA + "\n    import peft, mora\n" + MERGE, *given, second, *use, cwd=tmp_path).succeed()

    expected = model(tokens).logits
    assert (expected - make_llama()(tokens).logits).abs().max() > 0.1
    assert_close(torch.load(tmp_path / "logits.pt"), expected)
    assert_close(AutoModelForCausalLM.from_pretrained(second)(tokens).logits, expected)
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
    assert (first / "config.json").read_text() == (second / "config.json").read_text()


def test_importing_mora_alone_imports_neither_torch_nor_peft(tmp_path):
    code = "import sys, mora; assert not {'torch', 'peft', 'transformers'} & set(sys.modules)"
    Process(code, cwd=tmp_path).succeed()
