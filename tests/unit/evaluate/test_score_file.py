"""`result.json` over several calls into one folder: tasks are added, none is lost, what disagrees is refused."""

import json

import pytest

from mora.config import source
from mora.evaluate import __main__ as command
from mora.evaluate import score_checkpoint, synthetic
from mora.evaluate.response_cache import ResponseCache


class Refused(Exception):
    """What the command said before it ended."""


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Scores made-up records with the tiny model into one folder. Returns what is then in its `result.json`."""
    data = synthetic.write(tmp_path / "data")

    def call(*arguments, model="tiny"):
        flags = ["--data-dir", str(data), "--output", str(tmp_path / "out"), "--device", "cpu"]
        if command.main([model, "--task", *arguments, *flags]):
            raise Refused(capsys.readouterr().err.strip())
        return json.loads((tmp_path / "out/result.json").read_text())

    return call


@pytest.fixture
def unscored(monkeypatch):
    """From here on, a call that scores something fails."""
    return lambda: monkeypatch.setattr(score_checkpoint, "evaluate_model", None)


def test_without_an_output_scores_go_where_runs_work(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    data = synthetic.write(tmp_path / "data")
    assert command.main(["tiny", "--task", "biomed_usmle", "--data-dir", str(data), "--device", "cpu"]) == 0
    assert (tmp_path / "outputs/evaluation/tiny/result.json").is_file()


def test_a_second_call_adds_its_tasks(evaluate, tmp_path):
    first = evaluate("biomed_usmle")
    path = tmp_path / "out/result.json"
    older = {k: v for k, v in first.items() if k not in ("tasks", "sha256")} | {"source": "of all tasks, as once"}
    older["tasks"] = {name: {"task": name, "prompts": task["prompts"]} for name, task in first["tasks"].items()}
    path.write_text(json.dumps(older))
    both = evaluate("biomed_rct", "finance_ner")
    assert set(both["metrics"]) == set(both["tasks"]) == {"biomed_usmle", "biomed_rct", "finance_ner"}
    assert both["metrics"]["biomed_usmle"] == first["metrics"]["biomed_usmle"]
    assert both["tasks"]["biomed_usmle"] == older["tasks"]["biomed_usmle"]
    assert both["source"] == older["source"]
    assert both["tasks"]["biomed_rct"]["source"].keys() == {"commit", "fingerprint", "dirty"}
    assert {p.stem for p in (tmp_path / "out/samples").iterdir()} == set(both["metrics"])


def test_a_task_scored_again_over_the_same_documents_is_replaced(evaluate):
    first, again = evaluate("biomed_usmle", "biomed_rct"), evaluate("biomed_usmle")
    assert again["metrics"] == first["metrics"]


def test_other_documents_do_not_replace_a_score(evaluate, tmp_path):
    first = evaluate("biomed_usmle")
    kept = (tmp_path / "out/samples/biomed_usmle.jsonl").read_text()
    path = tmp_path / "data/adaptllm/USMLE.jsonl"
    path.write_text(path.read_text().replace("did it rise", "did it fall"))
    with pytest.raises(
        Refused, match=r"out holds the scores of biomed_usmle over other documents: give another folder"
    ):
        evaluate("biomed_usmle")
    assert json.loads((tmp_path / "out/result.json").read_text()) == first
    assert (tmp_path / "out/samples/biomed_usmle.jsonl").read_text() == kept


def test_other_settings_are_refused_before_scoring(evaluate, unscored):
    evaluate("biomed_usmle", "--limit", "2")
    unscored()
    expected = (
        r"'tiny' in fp32 with batch_size=64, not 8; limit=2, not None: use the same settings, or give another folder"
    )
    with pytest.raises(Refused, match=expected):
        evaluate("biomed_rct", "--batch-size", "8")


def test_other_weights_are_refused_before_scoring(evaluate, unscored, tmp_path):
    known = evaluate("biomed_usmle")
    del known["sha256"]  # which is of what was written
    known["model"] |= {"fingerprint": "00", "name": "A/adapter"}
    (tmp_path / "out/result.json").write_text(json.dumps(known))
    unscored()
    with pytest.raises(Refused, match=r"holds the scores of 'A/adapter' in fp32, other weights: .* with --output$"):
        evaluate("biomed_rct")
    assert json.loads((tmp_path / "out/result.json").read_text()) == known


@pytest.mark.parametrize("text", ["", "[]", '{"model": {}}', '{"model": {"name": "a"'])
def test_a_damaged_result_is_refused_before_scoring(evaluate, unscored, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/result.json").write_text(text)
    unscored()
    with pytest.raises(
        Refused, match=r"result.json is not an evaluation result, or is truncated \(.*\): give another "
    ):
        evaluate("biomed_rct")
    assert (tmp_path / "out/result.json").read_text() == text


def test_a_folder_in_place_of_the_result_is_said_before_scoring(evaluate, unscored, tmp_path):
    (tmp_path / "out/result.json").mkdir(parents=True)
    unscored()
    with pytest.raises(Refused, match=r"result.json is not an evaluation result, or is truncated \(.*Is a directory"):
        evaluate("biomed_rct")


def test_the_code_at_the_start_is_named_and_no_answers_of_other_code_are_taken(evaluate, tmp_path, monkeypatch):
    journals = []
    monkeypatch.setattr(ResponseCache, "__init__", lambda self, path, identity: journals.append((path, identity)))
    monkeypatch.setattr(ResponseCache, "answer", lambda self, batch, compute: compute())
    for fingerprint in ("first", "second"):
        code = {"commit": "c" * 40, "fingerprint": fingerprint, "dirty": False}
        monkeypatch.setattr(source, "of_this_process", lambda code=code: code)
        assert evaluate("biomed_usmle")["tasks"]["biomed_usmle"]["source"] == code
    assert len({path for path, _ in journals}) == 1
    assert len({identity for _, identity in journals}) == 2
