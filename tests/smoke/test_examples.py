"""Every script of examples/ runs as it is written, on a tiny model, without network."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mora.config import compose
from mora.models.load import load_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROWS = 48
TINY = ["model.architecture.hidden_size=32", "model.architecture.intermediate_size=48", "task.data.pairs=4"]
TINY += ["task.train.global_batch_size=4", "task.train.epochs=4", "task.train.warmup_steps=1"]
TINY += ["task.evaluation.at_steps=[]", "task.evaluation.loss_every_steps=4"]


def main_of(name: str):
    """The `main` of examples/<name>.py."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """The folder of a one-layer Llama with a tokenizer of characters."""
    folder = tmp_path_factory.mktemp("model")
    config = compose(["task=uuid", "method=none", "scale=smoke", *TINY[:2], "model.architecture.num_hidden_layers=1"])
    network, tokenizer = load_model(config.model, "fp32")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path: Path) -> str:
    made = [
        {"instruction": f"Add 1 to {i}", "input": "", "output": str(i + 1), "text": f"{i} + 1 = {i + 1}"}
        for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path)


@pytest.fixture
def rows(tmp_path) -> str:
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> str:
    """The adapter that finetune_sft leaves; checked, then exported by another example."""
    folder = tmp_path_factory.mktemp("sft")
    main_of("finetune_sft")(model, write_rows(folder / "rows.jsonl"), str(folder / "out"))
    return str(folder / "out" / "adapter")


def is_trained(adapter: Path) -> bool:
    return any(weight.any() for weight in load_file(adapter / "adapter_model.safetensors").values())


def test_no_example_is_long():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) >= 7
    assert {name: n for name, n in lengths.items() if n > 60} == {}


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tests, page = Path(__file__).read_text(), (ROOT / "README.md").read_text() + (EXAMPLES / "README.md").read_text()
    assert {name for name in names if f'"{name}"' not in tests} == set()
    assert {name for name in names if f"{name}.py" not in page} == set()


def test_finetune_trainer_trains_and_resumes(model, rows, tmp_path, capfd):
    main = main_of("finetune_trainer")
    main(model, rows, str(tmp_path / "out"))
    assert is_trained(tmp_path / "out" / "adapter")
    steps = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert steps == ["checkpoint-6"]
    main(model, rows, str(tmp_path / "out"))  # nothing is left to train; it must not begin again
    assert sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*")) == steps


def test_finetune_sft_trains(adapter):
    assert is_trained(Path(adapter))
    assert json.loads(Path(adapter, "adapter_config.json").read_text())["peft_type"] == "MORA"


def test_finetune_4bit_trains_resumes_and_says_what_merging_rounds_away(model, rows, tmp_path):
    pytest.importorskip("bitsandbytes")
    main = main_of("finetune_4bit")
    with pytest.warns(UserWarning, match="merged into a quantised base, whose rounding is"):
        main(model, rows, str(tmp_path))
    assert is_trained(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged_4bit")
    assert type(merged.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    steps = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    main(model, rows, str(tmp_path))  # nothing is left to train; it must not begin again
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == steps == ["checkpoint-6"]
    again = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], M) for name, M in trained.items())


def test_remora_restarts_and_leaves_a_whole_model(model, rows, tmp_path, capsys):
    main_of("remora")(model, rows, str(tmp_path / "out"), "2")
    assert "2 restarts" in capsys.readouterr().out
    before = AutoModelForCausalLM.from_pretrained(model)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    weights = [m.model.layers[0].self_attn.q_proj.weight for m in (before, after)]
    assert not torch.equal(*weights)


def test_merge_and_serve_leaves_what_needs_no_mora(adapter, tmp_path, capfd):
    main_of("merge_and_serve")(adapter, str(tmp_path), "8")
    printed = capfd.readouterr().out
    assert "The capital of France is" in printed
    assert "--max-lora-rank 8" in printed
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def test_score_checkpoint_compares_a_base_with_its_adapter(model, adapter, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    documents = tmp_path / "data" / "gsm8k"
    documents.mkdir(parents=True)
    made = [{"question": f"What is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(8)]
    (documents / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    options = ["--data-dir", str(tmp_path / "data"), "--limit", "8"]
    main_of("score_checkpoint")("metamath_gsm8k_gold", model, adapter, str(tmp_path / "scores"), *options)
    printed = capfd.readouterr().out
    assert "metamath_gsm8k_gold" in printed
    assert (tmp_path / "scores" / "second" / "result.json").is_file()
    # The folders now hold scores, which must not be shown in the place of those that could not be made.
    assert main_of("score_checkpoint")("metamath_gsm8k_glod", model, adapter, str(tmp_path / "scores"), *options) == 2
    printed = capfd.readouterr()
    assert "did you mean metamath_gsm8k_gold?" in printed.err
    assert printed.out == ""


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """Each `python run.py SETTINGS` of an example becomes a fork, which need not import everything."""

    def run(command, check):
        assert command[:2] == [sys.executable, "run.py"]
        cache = str(tmp_path / "cache")
        codes, output = forked.train(compose(command[2:]), tmp_path / "outputs", MORA_CACHE_DIR=cache)
        assert codes == [0], output

    monkeypatch.setattr(subprocess, "run", run)


def test_add_a_method_runs_it_beside_mora(tmp_path, forks, capfd):
    main_of("add_a_method")(str(tmp_path / "vera"), *TINY, "task.evaluation.at_steps=[4]")
    printed = capfd.readouterr().out
    assert all(f"{name}: " in printed for name in ("MoRA", "VeRA"))


def test_add_a_task_trains_on_own_rows(rows, tmp_path, forks, capfd):
    main_of("add_a_task")(rows, str(tmp_path / "results"), *TINY[:2], "task.data.validation_sequences=8")
    printed = capfd.readouterr().out
    assert all(f"{method}: held-out loss " in printed for method in ("lora", "mora"))
