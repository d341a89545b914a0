"""A model that gives NaN gets no score: the first document that it concerns is named in one line."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import tiny_config

from mora.config.cached_composition import compose_cached as compose
from mora.errors import NonFiniteError
from mora.evaluate import __main__ as command
from mora.evaluate import choices, generation
from mora.evaluate.harness import Settings, evaluate_model
from mora.models.load import load_model
from mora.suite.launch import write_config
from mora.train import worker

ROWS = {
    "USMLE": [{"input": f"Which{mark} Answer:", "options": ["one", "the other"], "gold_index": 1} for mark in "?!~"],
    "NER": [{"input": f"Who{mark} Answer:", "label": "Ann (person)"} for mark in "?!~"],
}


@pytest.fixture
def broken():
    """The tiny model with NaN in the embedding of one character, `~`."""
    model, tokenizer = load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("~")] = math.nan
    return model, tokenizer


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "adaptllm").mkdir()
    for name, rows in ROWS.items():
        (tmp_path / f"adaptllm/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings(batch_size=4, data_dir=str(tmp_path), response_cache=tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("task", "what"), [("biomed_usmle", "a log-likelihood is nan"), ("finance_ner", "a logit is NaN")]
)
def test_the_document_is_named(broken, settings, task, what):
    for _ in range(2):  # the second time from the response cache, if it is there
        with pytest.raises(NonFiniteError, match=f"^task {task}, document 2: {what}: the weights are damaged, or"):
            evaluate_model(*broken, [task], settings)


def test_the_document_is_named_where_a_batch_is_written_in_parts(broken, settings, monkeypatch):
    monkeypatch.setattr("mora.evaluate.backend.rows_at_once", lambda *_: 2)
    with pytest.raises(NonFiniteError, match=r"^task finance_ner, document 2: a logit is NaN"):
        evaluate_model(*broken, ["finance_ner"], settings)


def test_other_documents_of_the_batch_are_scored(broken, settings):
    first = Settings(batch_size=4, data_dir=settings.data_dir, limit=2)
    assert evaluate_model(*broken, ["biomed_usmle"], first)[0]["biomed_usmle"]["documents"] == 2


def test_the_command_ends_in_one_line(broken, settings, tmp_path, capsys):
    for part in broken:
        part.save_pretrained(tmp_path / "model")
    flags = ["--data-dir", settings.data_dir, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert command.main([str(tmp_path / "model"), "--task", "biomed_usmle", *flags]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mora.evaluate: task biomed_usmle, document 2: a log-likelihood is nan")
    assert not (tmp_path / "out/result.json").exists()


@pytest.mark.parametrize("fixed", [False, True])
def test_nan_in_a_later_token_is_found_and_not_that_of_a_row_that_has_ended(fixed):
    """A model that gives token t + 1 after t, NaN after 30. Rows: one starts at 20, one ends at 12 and would pass 30."""

    class Counting(torch.nn.Module):
        def forward(self, input_ids, past_key_values, **_):
            nothing = torch.zeros(*input_ids.shape, 1)[:, None]
            past_key_values.update(nothing, nothing, 0)
            logits = torch.nn.functional.one_hot(input_ids + 1, 64).float()
            logits[input_ids == 30] = math.nan
            return SimpleNamespace(logits=logits)

    def ask(*first, ends=()):
        ids = torch.tensor(first)[:, None]
        return generation.greedy(
            Counting(), ids, torch.ones_like(ids), 24, ends, lambda rows: [False] * len(rows), fixed
        )

    assert ask(1, 2)[1] == list(range(3, 27))
    with pytest.raises(generation.NanLogits, match="row 1"):
        ask(1, 20)
    assert ask(1, 9, 2, ends=[12])[1] == [10, 11, 12]


def test_options_of_another_backend_are_refused_too():
    with pytest.raises(NonFiniteError, match=r"the log-likelihoods of the options are \[nan, -1.0\] after 'Which\?'"):
        choices.score({"prompt": "Which?", "gold": 1}, [(math.nan, False), (-1.0, False)])


@pytest.mark.parametrize("method", ["mora", "none"])
def test_a_run_whose_last_update_ruined_the_weights_diverged(method, tmp_path, monkeypatch):
    """An untouched model that gives NaN is no run that diverged: its error is told."""
    config = tiny_config(method, f"scale.results_dir={tmp_path}/results")
    write_config(config, tmp_path / "config.yaml")

    def ruined(*_):
        raise NonFiniteError("task uuid, document 0: a logit is NaN")

    monkeypatch.setattr("mora.train.scoring.Scoring.__call__", ruined)
    if method == "none":
        with pytest.raises(NonFiniteError):
            worker.run(tmp_path)
        return
    result = json.loads(worker.run(tmp_path).read_text())
    assert (result["status"], result["reason"]) == ("diverged", "task uuid, document 0: a logit is NaN")
