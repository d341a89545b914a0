"""Results are brought in once; another of the same name is not lost without being asked for."""

import hashlib
import json
import runpy
import shutil
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

    def run(*more, folder="from"):
        folders = [str(tmp_path / folder), "--into", str(tmp_path / "into")]
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
    (tmp_path / "digests.txt").write_text(f"{'0' * 64}  into/a.json\n")
    assert collect("--replace") == 0
    assert json.loads(there.read_text())["loss"] == 2.0
    assert "into/a.json" not in (tmp_path / "digests.txt").read_text(), "it is sealed, and another than was named"


def test_a_damaged_result_is_replaced_only_if_it_is_to_be(collect, tmp_path):
    there = tmp_path / "into" / "a.json"
    bring(tmp_path / "from", 1.0)
    there.parent.mkdir()
    there.write_text('{"loss": 1.')
    assert collect().startswith(f"collect_results.py: {there} is damaged")
    assert collect("--replace") == 0
    assert json.loads(there.read_text())["loss"] == 1.0


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


RUN, OTHER = "c4-lora-r128-lr2e-3-s1-*", "c4-lora-r128-lr2e-3-s2-*"


@pytest.fixture
def run(tmp_path, collect, monkeypatch):
    """A committed run with its log and its documents' scores, in `from/`; returns the path of its result."""
    result = next((ROOT / "results/runs").glob(f"{RUN}.json"))
    fingerprint = json.loads(result.read_text())["source"]["fingerprint"]
    monkeypatch.setattr(source, "fingerprint_of_commit", lambda commit, files: fingerprint)
    for file in (result, result.with_suffix(".log.jsonl"), documents_of(result)):
        shutil.copy(file, tmp_path / "from")
    return tmp_path / "from" / result.name


def documents_of(result):
    return ROOT / "results/documents" / f"{result.stem}.jsonl.zst"


def resealed(result, **changed):
    values = {key: value for key, value in json.loads(result.read_text()).items() if key != "sha256"}
    result.write_text(json.dumps(values | changed))


def test_the_digests_of_what_is_brought_in_are_recorded(collect, run, tmp_path):
    assert collect() == 0
    name = f"documents/{run.stem}.jsonl.zst"
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    lines = (tmp_path / "digests.txt").read_text().splitlines()
    assert f"{digest}  {name}" in lines
    assert [line.split()[1] for line in lines] == sorted(line.split()[1] for line in lines)


def spectrum(folder, name):
    (folder / "spectra").mkdir(exist_ok=True)
    shutil.copy(next((ROOT / "results/spectra").glob(f"{name}.json")), folder / "spectra")


def test_a_spectrum_is_brought_in_even_if_it_comes_later(collect, run, tmp_path):
    shutil.copytree(run.parent, tmp_path / "queue" / "runs")
    assert collect(folder="queue/runs") == 0
    spectrum(tmp_path / "queue", RUN)
    assert collect(folder="queue/runs") == 0
    assert (tmp_path / "spectra" / run.name).is_file()
    assert f"spectra/{run.name}" in (tmp_path / "digests.txt").read_text()


def test_what_a_replaced_result_rested_on_goes_with_it(collect, run, tmp_path):
    assert collect() == 0
    resealed(run, wall_s=1.0)
    run.with_suffix(".jsonl.zst").unlink()
    kept = tmp_path / "documents" / f"{run.stem}.jsonl.zst"
    assert collect() == 1
    assert kept.is_file()
    assert collect("--replace") == 0
    assert not kept.exists()
    assert "documents" not in (tmp_path / "digests.txt").read_text()


def of_another_spectrum(run):
    spectrum(run.parent.parent, OTHER)
    folder = run.parent.parent / "spectra"
    next(folder.iterdir()).rename(folder / run.name)


def of_another_name(run):
    for file in list(run.parent.iterdir()):
        file.rename(file.with_name(file.name.replace(run.stem, "b")))


def of_another_log(run):
    log = run.with_suffix(".log.jsonl")
    resealed(run, log_sha256=hashlib.sha256(log.read_bytes()).hexdigest()[:16])
    log.write_text(log.read_text().replace('"step": 1,', '"step":  1,', 1))


def of_cut_documents(run):
    documents = run.with_suffix(".jsonl.zst")
    documents.write_bytes(documents.read_bytes()[:-3])


def of_other_documents(run):
    shutil.copy(documents_of(next((ROOT / "results/runs").glob(f"{OTHER}.json"))), run.with_suffix(".jsonl.zst"))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (of_another_name, "b.json", "it is the result of c4-lora-r128"),
        (of_another_log, ".log.jsonl", "is not the log that its result was written with"),
        (of_cut_documents, ".jsonl.zst", "or is truncated (decompression error"),
        (of_other_documents, ".jsonl.zst", "expected the documents of this run"),
        (of_another_spectrum, ".json", "it is the spectrum of c4-lora-r128-lr2e-3-s2"),
    ],
)
def test_what_is_damaged_or_another_runs_is_refused_before_anything_is_copied(
    collect, run, tmp_path, capsys, damage, file, reason
):
    damage(run)
    assert collect() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert file in said
    assert reason in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name not in ("from", "spectra")]
