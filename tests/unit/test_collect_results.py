"""Results are brought in once; another of the same name is not lost without being asked for."""

import json
import runpy
import sys

import pytest

from mora.config import source
from mora.config.source import ROOT


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Runs the script over `from/` into `into/`; the fingerprints of a commit here are "known" and "known-old"."""
    (tmp_path / "from").mkdir()
    of = {source.NUMBERS: "known", source.EVERYTHING: "known-old"}
    monkeypatch.setattr(source, "fingerprint_of_commit", lambda commit, files: of[files])

    def run(*more):
        folders = [str(tmp_path / "from"), "--into", str(tmp_path / "into")]
        monkeypatch.setattr(sys, "argv", ["collect_results.py", *folders, *more])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "collect_results.py"), run_name="__main__")
        return ended.value.code

    return run


def bring(folder, loss, fingerprint="known"):
    made_by = {"commit": None, "dirty": None, "fingerprint": fingerprint}
    (folder / "a.json").write_text(json.dumps({"run_id": "a", "loss": loss, "source": made_by}))
    (folder / "a.log.jsonl").write_text(json.dumps({"step": 1, "loss": loss}) + "\n")


@pytest.mark.parametrize("fingerprint", ["known", "known-old"])
def test_a_result_of_a_known_commit_is_brought_in_with_it(collect, tmp_path, fingerprint):
    """Until 2026-11 the fingerprint of a run covered everything; those results are brought in as well."""
    bring(tmp_path / "from", 1.0, fingerprint)
    assert collect() == 0
    result = json.loads((tmp_path / "into" / "a.json").read_text())
    assert result["source"]["dirty"] is False
    assert len(result["source"]["commit"]) == 40
    assert (tmp_path / "into" / "a.log.jsonl").is_file()


def test_changed_source_is_refused(collect, tmp_path, capsys):
    bring(tmp_path / "from", 1.0, fingerprint="changed")
    assert collect() == 1
    assert capsys.readouterr().err == "refused a.json: its source is that of no commit here\n"


def test_another_result_of_that_name_stays_unless_it_is_to_be_replaced(collect, tmp_path, capsys):
    there = tmp_path / "into" / "a.json"
    bring(tmp_path / "from", 1.0)
    assert collect() == 0
    assert collect() == 0, "the same one again"
    assert "a.json: there already" in capsys.readouterr().out
    bring(tmp_path / "from", 2.0)
    assert collect() == 1
    assert capsys.readouterr().err == f"refused a.json: {there} is another result; --replace takes this one instead\n"
    assert json.loads(there.read_text())["loss"] == 1.0
    assert '"loss": 1.0' in there.with_suffix(".log.jsonl").read_text()
    assert collect("--replace") == 0
    assert json.loads(there.read_text())["loss"] == 2.0


def test_the_same_result_is_brought_in_where_it_lay_unknown(collect, tmp_path):
    (tmp_path / "into").mkdir()
    for folder in ("from", "into"):
        bring(tmp_path / folder, 1.0)
    assert collect() == 0
    assert json.loads((tmp_path / "into" / "a.json").read_text())["source"]["dirty"] is False


@pytest.mark.parametrize("text", ['{"run_id"', "{}", "[]", '{"source": {}}'])
def test_a_damaged_file_is_named(collect, tmp_path, text):
    (tmp_path / "from" / "a.json").write_text(text)
    assert str(collect()).startswith(
        f"collect_results.py: {tmp_path}/from/a.json is damaged: expected JSON with source."
    )
