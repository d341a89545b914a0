"""What a run leaves is loaded by `python -m mora.evaluate` with nothing else given: `adapter/`, or the merged `model/`."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from mora.config import ConfigError, compose
from mora.errors import ModelError
from mora.evaluate import __main__ as command
from mora.evaluate import score_checkpoint, synthetic
from mora.methods import prepare
from mora.models.load import load_any, load_model
from mora.planner.cost import cost
from mora.train.engines import make_engine
from mora.train.save_model import base_name, save_model

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SMOKE = ["method=mora", "r=4", "scale=smoke"]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def saved(folder, *overrides):
    """The logits of a model as if trained, whose parts are then in the folder."""
    config = compose([*SMOKE, *overrides])
    model, tokenizer = load_model(config.model, "fp32")
    model = prepare(model, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    trained = logits(model)
    save_model(model, tokenizer, config, folder)
    return trained


def test_an_adapter_is_loaded_with_its_base(tmp_path):
    trained = saved(tmp_path, "task=uuid")
    model, tokenizer = load_any(str(tmp_path / "adapter"), "fp32")
    torch.testing.assert_close(logits(model), trained)
    assert tokenizer("a1")["input_ids"] == [13, 4]
    assert (tmp_path / "adapter/tokenizer.json").is_file()
    assert not (tmp_path / "model").exists()
    data = synthetic.write(tmp_path / "data")
    flags = ["--data-dir", str(data), "--output", str(tmp_path / "out"), "--device", "cpu"]
    command.main([str(tmp_path / "adapter"), "--task", "biomed_usmle", *flags])
    assert "biomed_usmle" in json.loads((tmp_path / "out/result.json").read_text())["metrics"]


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_in_bf16_keeps_the_rotary_frequencies(tmp_path, merge):
    """Casting the whole model rounded them to bf16, too, by up to 0.2%."""
    saved(tmp_path, "task=uuid")
    model, _ = load_any(str(tmp_path / "adapter"), "bf16", merge)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert [b.dtype for name, b in model.named_buffers() if name.endswith("inv_freq")] == [torch.float32] * 2


def test_an_adapter_may_stay_unmerged(tmp_path, capsys):
    trained = saved(tmp_path, "task=uuid")
    model, tokenizer = load_any(str(tmp_path / "adapter"), "fp32", merge=False)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=0)
    assert tokenizer("a1")["input_ids"] == [13, 4]
    data = synthetic.write(tmp_path / "data")
    flags = ["--task", "biomed_usmle", "--unmerged", "--data-dir", str(data), "--output", str(tmp_path / "out")]
    command.main([str(tmp_path / "adapter"), *flags, "--device", "cpu"])
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert "biomed_usmle" in result["metrics"]
    assert result["model"]["unmerged"] is True
    assert command.main(["tiny", *flags, "--device", "cpu"]) == 2
    assert "'tiny' is not an adapter's folder, so nothing in it can stay unmerged" in capsys.readouterr().err


def test_a_merged_model_is_loaded_and_its_adapter_alone_is_not(tmp_path):
    trained = saved(tmp_path, "task=c4")
    model, tokenizer = load_any(str(tmp_path / "model"), "fp32")
    torch.testing.assert_close(logits(model), trained)
    assert tokenizer("a1")["input_ids"] == [13, 4]
    with pytest.raises(ModelError, match=rf"base_model_name_or_path is empty: give {tmp_path}/model, the merged model"):
        load_any(str(tmp_path / "adapter"), "fp32")


def test_full_fine_tuning_leaves_its_model(tmp_path):
    trained = saved(tmp_path, "task=uuid", "method=fft", "r=null")
    model, _ = load_any(str(tmp_path / "model"), "fp32")
    torch.testing.assert_close(logits(model), trained)
    assert not (tmp_path / "adapter").exists()


def test_another_model_may_not_have_the_name_of_a_known_one(tmp_path):
    saved(tmp_path, "task=uuid", "method=fft", "r=null")
    given = ["task=uuid", "method=none", "scale=smoke", "model=llama2_7b", f"model.path={tmp_path}/model"]
    with pytest.raises(ConfigError, match=r"model' is not llama2_7b: its vocab_size is 104, expected 32000; take "):
        load_model(compose(given).model, "fp32")
    load_model(compose([*given, "model.name=mine"]).model, "fp32")


def test_what_a_run_left_is_scored_under_the_runs_name():
    assert [score_checkpoint._short(Path(f"outputs/uuid-1/{part}")) for part in ("adapter", "model")] == ["uuid-1"] * 2
    assert score_checkpoint._short(Path("owner/model-7b")) == "model-7b"


def test_the_folder_of_a_run_is_no_model(tmp_path):
    saved(tmp_path, "task=uuid")
    with pytest.raises(ModelError, match=f"is the folder of a run: give {tmp_path}/adapter$"):
        load_any(str(tmp_path), "fp32")
    with pytest.raises(ModelError, match="there is no such folder"):
        load_any(str(tmp_path / "nothing"), "fp32")


@pytest.mark.parametrize(
    "run",
    [
        "uuid fft null",
        "uuid mora 4",
        "uuid relora 4",
        "uuid asylora 4 method.adapter.freeze_a=true",
        "c4 fft null",
        "c4 mora 4",
        "c4 remora 4",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_knows_how_large_what_is_left_is(tmp_path, run, precision):
    task, method, r, *more = run.split()
    precise = f"scale.precision={precision}"
    config = compose([f"task={task}", f"method={method}", f"r={r}", "scale=smoke", precise, *more])
    model, tokenizer = load_model(config.model, precision)
    engine = make_engine(prepare(model, config), config)
    with engine.materialized():
        save_model(engine.model, tokenizer, config, tmp_path)
    size = 0
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            size += sum(file.get_tensor(name).nbytes for name in file.keys())
    assert cost(config).disk == size


@pytest.mark.parametrize(
    ("overrides", "base"),
    [
        (["scale=smoke"], "tiny"),
        (["scale=smoke", "model.architecture.hidden_size=32"], None),
        (["scale=lite"], "smollm2_135m"),
        (["scale=lite", "model.path=/elsewhere/the.gguf"], "smollm2_135m"),
        (["scale=paper"], "meta-llama/Llama-2-7b-hf"),
        (["scale=paper", "model.path=/models/llama"], "/models/llama"),
    ],
)
def test_the_base_is_named_as_other_machines_know_it(overrides, base):
    assert base_name(compose(["task=uuid", "method=mora", "r=8", *overrides]).model) == base
