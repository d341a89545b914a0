"""Whole tasks through lm-eval on the tiny model: known answers, the command, real sets, bad data."""

import json
import math
import os
import subprocess

import pytest
import torch

from mora.config.data_schema import UuidData
from mora.data.sets import EvaluationSet
from mora.data.uuid import make_pairs
from mora.errors import DataError, ModelError
from mora.evaluate import __main__ as command
from mora.evaluate import harness, samples
from mora.evaluate.harness import Settings, evaluate_model
from mora.evaluate.logged import LoggedSamples
from mora.evaluate.records import rows
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.c4 import c4_task
from mora.evaluate.tasks.finance import finance_local
from mora.evaluate.tasks.metamath import metamath_task
from mora.evaluate.tasks.mmlu import mmlu_task
from mora.models.load import load_any

real = pytest.mark.skipif("MORA_DATA_DIR" not in os.environ, reason="MORA_DATA_DIR is not set")


def test_perplexity_is_exp_of_the_models_own_loss(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("an evaluation asks no other program"))
    model, tokenizer = tiny
    (tmp_path / "pretrain_text").mkdir()
    (tmp_path / "pretrain_text" / "validation.jsonl.zst").write_bytes(_zst([{"text": "the cat sat. " * 100}]))
    settings = Settings(batch_size=2, data_dir=str(tmp_path))
    metrics, _ = evaluate_model(model, tokenizer, ["c4_perplexity_local"], settings)
    blocks = c4_task.blocks(["the cat sat. " * 100], tokenizer, 10**6, length=256)
    ids = [[int(i) for i in (b["context"].split()[-1] + b["target"]).split()] for b in blocks]
    assert [len(block) for block in ids] == [256] * 5
    with torch.no_grad():
        loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).loss.item()
    assert metrics["c4_perplexity_local"]["score"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("no model")
    with pytest.raises(ModelError, match=rf"^model '{tmp_path}' cannot be loaded \(.*give a folder, hub id or name$"):
        load_any(str(tmp_path), "fp32")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--limit", "0"], "argument --limit: '0': expected a whole number above 0"),
        (["--batch-size", "-1"], "argument --batch-size: '-1': expected"),
        (["--device", "gpu"], "argument --device: 'gpu': expected a device that is here"),
    ],
)
def test_bad_flags_are_refused_before_the_model_is_loaded(flags, expected, capsys):
    with pytest.raises(SystemExit):
        command.main(["tiny", "--task", "uuid", *flags])
    assert expected in capsys.readouterr().err


def test_samples_that_were_cut_are_refused_with_their_file(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples/t.jsonl").write_text('{"task": "t"')
    with pytest.raises(DataError, match=r"samples/t.jsonl is not a file of samples, or is truncated"):
        samples.read(tmp_path)


@real
def test_sizes_of_the_real_sets():
    assert len(mmlu_task.load(0, True)["test"]) == 14042
    assert len(mmlu_task.load(0, False, subjects="bio")["test"]) == 1089
    assert len(metamath_task.load_gsm8k()["test"]) == 1319
    assert len(metamath_task.load_math()["test"]) == 5000
    assert len(metamath_task.load_math500()["test"]) == 500
    assert len(biomed_task.load_piboso_local()["test"]) == 1991
    assert len(finance_local.load_fpb()["test"]) == 977
    assert len(finance_local.load_fiqa_sa()["test"]) == 219
    assert len(finance_local.load_headline()["test"]) == 7 * 2177
    assert len(finance_local.load_ner()["test"]) == 98
    assert len(finance_local.load_convfinqa()["test"]) == 1490


@real
def test_every_task_with_real_records_runs(tiny):
    tasks = [
        "mmlu_tulu_0shot",
        "metamath_gsm8k",
        "metamath_math500",
        "biomed_local",
        "finance_local",
        "c4_perplexity_local",
    ]
    metrics, logged = evaluate_model(*tiny, tasks, Settings(batch_size=8, limit=2))
    assert {"biomed_local", "finance_local", "metamath_gsm8k", "finance_headline_local"} <= set(metrics)
    for name, values in metrics.items():
        assert math.isfinite(values["score"]), name
    assert len(logged["finance_ner_local"].rows) == 2


def test_the_score_of_those_texts_that_hold_an_answer():
    rows = [{"id": i, "filter": "none", "answered": i % 2, "score": float(i == 1)} for i in range(8)]
    header = {"task": "metamath_gsm8k", "headline": "score", "documents": 8, "aggregation": "mean"}
    facts = harness._sample_facts(LoggedSamples(header, rows))
    assert facts["score_if_answered"] == 0.25
    assert facts["score_if_answered_stderr"] == pytest.approx(0.25)
    silent = [row | {"answered": 0.0} for row in rows]
    assert "score_if_answered" not in harness._sample_facts(LoggedSamples(header, silent))


def test_rows_of_adaptllms_schema_run_through_the_command(tiny, tmp_path, capsys):
    (tmp_path / "adaptllm").mkdir()
    row = {"id": 0, "input": "Which? Answer:", "options": ["one thing", "the other"], "gold_index": 1}
    for name in ("USMLE", "RCT"):
        (tmp_path / "adaptllm" / f"{name}.jsonl").write_text(f"{json.dumps(row)}\n" * 3)
    flags = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    command.main(["tiny", "--task", "biomed_usmle", "biomed_rct", *flags])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["metrics"]) == {"biomed_usmle", "biomed_rct"}
    assert result["tasks"]["biomed_rct"]["documents"] == 3
    assert not (tmp_path / "out" / "journal.jsonl").exists()
    from mora.evaluate import compare

    compare.main([str(tmp_path / "out"), str(tmp_path / "out")])
    assert "biomed_usmle" in capsys.readouterr().out
    path = tmp_path / "out/samples/biomed_rct.jsonl"
    header, *rows = map(json.loads, path.read_text().splitlines())
    header = {name: value for name, value in header.items() if "sha256" not in name}  # as before there were digests
    logged = [header, *({**row, "cluster": "one"} for row in rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in logged))
    compare.main([str(tmp_path / "out"), str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "| biomed_usmle | 3 |" in shown
    assert "Not compared: " in shown
    assert "biomed_rct: all 3 documents are one cluster" in shown


def test_uuid_outside_a_run_asks_for_the_papers_pairs(tmp_path):
    command.main(["tiny", "--task", "uuid", "--limit", "3", "--output", str(tmp_path), "--device", "cpu"])
    _, *logged = map(json.loads, (tmp_path / "samples/uuid.jsonl").read_text().splitlines())
    pairs = make_pairs(UuidData(kind="uuid", pairs=3, seed=0, loss_on="all"))
    assert [row["gold"] for row in logged] == [value for _, value in pairs]
    from mora.evaluate import compare

    assert "| uuid | 3 |" in compare.table(str(tmp_path), [str(tmp_path)])


def test_bad_data_are_refused_with_place_and_field(tmp_path):
    source = EvaluationSet("MIT", {"test": ("adaptllm/FPB.jsonl",)}, ("input", "gold_index"))
    with pytest.raises(DataError, match=r"adaptllm/FPB\.jsonl, rows with input, gold_index"):
        rows(source, str(tmp_path))
    path = tmp_path / "adaptllm" / "FPB.jsonl"
    path.parent.mkdir()
    for text, expected in {
        "": "there are no rows",
        '{"input": "a", "gold_index": 0}\n{"input": "b"}\n': r"FPB\.jsonl:2: field 'gold_index' is missing",
        '{"input": "a", "gold_index": 0}\n{"inp': r"FPB\.jsonl:2: not JSON",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=expected):
            list(rows(source, str(tmp_path)))
    packed = _zst([{"input": "a", "gold_index": 0}] * 200)
    cut = EvaluationSet("MIT", {"test": ("cut.jsonl.zst",)}, ("input",))
    (tmp_path / "cut.jsonl.zst").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cut off"):
        list(rows(cut, str(tmp_path)))


def _zst(records):
    import zstandard

    return zstandard.compress("".join(json.dumps(r) + "\n" for r in records).encode())
