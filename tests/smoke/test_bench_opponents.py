"""The benchmarks against the Hugging Face Trainer, Unsloth and lm-eval run on a CPU with a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from mora.bench import __main__ as bench
from mora.bench import evaluation, loop, render, unsloth_lora


def test_the_whole_loop_runs_against_the_hugging_face_trainer(tmp_path):
    bench.main(["loop", "--smoke", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("loop-smoke-*.json")
    result = json.loads(path.read_text())
    *rows, unsloth = result["rows"]
    assert [row["who"] for row in rows] == ["HF Trainer, PEFT LoRA r=8", "ours, MoRA r=8"]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert unsloth["who"].startswith("Unsloth")
    assert unsloth.get("tokens_per_s", 0) > 0 or unsloth["error"] == "not installed"
    assert "| ours, MoRA r=8 | 512 tokens |" in render.tables(result)
    result["hardware"]["product_tflops"], result["shape"] = 800.0, "llama2_7b"
    result["rows"][1]["tokens_per_s"] = 8000.0
    assert " | 26% | " in render.tables(result)  # of 8,000 tokens at 4 times 6.6 billion weights


def test_a_step_of_the_trainer_counts_its_own_tokens_though_the_loader_is_ahead(monkeypatch):
    counted = []
    monkeypatch.setattr(loop.Clock, "tick", lambda _, tokens: counted.append(tokens))
    monkeypatch.setattr(loop.Clock, "rate", lambda _: 0.0)
    loop._hugging_face(loop.PLANS["smoke"], [[5] * 60] * 12, 2, torch.device("cpu"))
    assert counted == [240, 240, 240]


def test_an_opponent_that_fails_is_a_row_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setattr(unsloth_lora, "PROGRAM", "raise ValueError('no GPU')")
    assert unsloth_lora._run("smoke", 0, tmp_path) == {"error": "ValueError: no GPU"}
    monkeypatch.setattr(unsloth_lora, "PROGRAM", "import sys\nopen(sys.argv[4], 'w').write('{\"error\": \"full\"}')")
    assert unsloth_lora._run("smoke", 0, tmp_path) == {"error": "full"}
    monkeypatch.setattr(unsloth_lora, "PROGRAM", "import time\ntime.sleep(60)")
    monkeypatch.setattr(unsloth_lora, "PATIENCE_S", 0.5)
    assert unsloth_lora._run("smoke", 1, tmp_path) == {"error": "not done within 0 s"}


def test_real_tokens_are_counted_and_padding_is_seen():
    class Collator:
        def __call__(self, rows):
            longest = max(len(row["input_ids"]) for row in rows)
            return {"input_ids": torch.zeros(len(rows), longest)}

    collator, counts = Collator(), []
    unsloth_lora._count_tokens(collator, counts, padding_free=True)
    assert isinstance(collator, Collator)
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": [1]}]
    collator(rows[:1])
    assert counts == [3]
    with pytest.raises(ValueError, match="4 tokens: it is padded"):
        collator(rows)
    padded, counts = Collator(), []
    unsloth_lora._count_tokens(padded, counts, padding_free=False)
    padded(rows)
    assert counts == [4]


def test_evaluation_runs_against_lm_evals_backend(tmp_path):
    bench.main(["evaluation", "--smoke", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("evaluation-smoke-*.json")
    result = json.loads(path.read_text())
    assert [(row["what"], row["who"], row["batch_size"]) for row in result["rows"]] == [
        (what, who, size) for what in ("options", "texts") for who in ("lm-eval's HFLM", "ours") for size in (2, 4)
    ]
    for row, seconds in zip(result["rows"], (2.0, 1.0, 4.0, 0.5, 2.0, 1.0, 4.0, 0.5), strict=True):
        assert min(row["seconds"]) > 0
        row["seconds"] = [seconds] * 3
    text = render.tables(result)
    assert "| options | ours | 4 | 16 | 2.000 | 0.50 (0.50 to 0.50, 3) |" in text
    assert "| texts | ours | 2 | 4 | 0.250 | 4.00 (4.00 to 4.00, 3) |" in text


@pytest.mark.parametrize(("patience_s", "rounds"), [(0.0, 1), (30.0, 5)])
def test_a_slow_backend_is_timed_in_fewer_rounds(patience_s, rounds):
    small = replace(evaluation.SMOKE, rounds=5, patience_s=patience_s)
    asked = []
    row = evaluation._row("texts", "ours", 2, 1, small, lambda: asked.append(1), torch.device("cpu"))
    assert len(row["seconds"]) == rounds
    assert len(asked) == rounds + 1, "the first is the warm-up"


def test_both_backends_are_asked_the_same_and_answer_the_same():
    small = evaluation.SMOKE
    model, tokenizer = evaluation.endless(small.shape, torch.device("cpu"))
    ours, theirs = (make(model, tokenizer, 2) for make in (evaluation._ours, evaluation._lm_evals))
    questions, prompts = evaluation._questions(small), evaluation._prompts(small)
    said, expected = (lm.loglikelihood(questions, True) for lm in (ours, theirs))
    assert [nats for nats, _ in said] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert ours.generate_until(prompts, True) == theirs.generate_until(prompts, True)
    assert {len(text.split()) for text in theirs.generate_until(prompts, True)} == {small.new_tokens}
