"""Another run's log or documents in the place of committed ones are refused; those of a new run are taken."""

import json

import pytest
from made_up import write

from mora import digests
from mora.config.cached_composition import compose_cached as compose
from mora.config.run_id import documents_path, log_path, result_path, run_id, spectrum_path
from mora.config.seal import sealed
from mora.errors import DamagedFileError
from mora.evaluate import documents
from mora.evaluate.logged import LoggedSamples
from mora.results import MODULES, checked, read, write_sealed
from mora.suite import launch, pairing
from mora.suite.figures import spectrum_of
from mora.suite.report.report_data import _without_evidence
from mora.suite.usable import log_of, result_of

pytestmark = pytest.mark.usefixtures("nothing_measured")


@pytest.fixture
def run():
    """A run with a log and documents, whose result does not have the digest of its log."""
    config = compose(["task=metamath", "method=lora", "r=4", "scale=lite"])
    write(config, {"validation_loss": 1.0}, log_rows=[{"step": 1, "loss": 2.0}])
    score(config, [1, 0])
    return config


def score(config, items):
    header = {"task": "metamath_gsm8k", "aggregation": "mean", "headline": "score", "prompts": "p"}
    rows = [{"cluster": None, "score": item} for item in items]
    documents.write(documents_path(config), {"metamath_gsm8k": LoggedSamples(header, rows)})


def test_swapped_documents_are_refused_if_they_are_named_and_taken_if_not(run):
    assert [row["score"] for row in pairing._of_run(run)["metamath_gsm8k"].rows] == [1, 0]
    digests.add(documents_path(run))
    assert pairing._of_run(run)
    score(run, [1, 1, 1])
    with pytest.raises(
        DamagedFileError, match=r"documents/metamath-\S+ is damaged: it is not the file that \S+digests.txt"
    ):
        pairing._of_run(run)
    digests.forget(documents_path(run))
    assert len(pairing._of_run(run)["metamath_gsm8k"].rows) == 3


def test_a_swapped_log_that_its_result_has_no_digest_of_is_refused_if_it_is_named(run):
    result = result_of(run)
    assert log_of(run, result)
    digests.add(log_path(run))
    assert log_of(run, result)
    log_path(run).write_text(json.dumps({"step": 1, "loss": 2.5}) + "\n")
    with pytest.raises(
        DamagedFileError, match=r"\.log\.jsonl is damaged: .* restore it, or, if its run was made again"
    ):
        log_of(run, result)


def test_a_result_that_is_not_sealed_is_compared_with_the_file_of_digests(run):
    digests.add(result_path(run))
    assert read(result_path(run)).metrics
    write(run, {"validation_loss": 0.5}, log_rows=[{"step": 1, "loss": 2.0}])
    with pytest.raises(DamagedFileError, match=r"runs/metamath-\S+\.json is damaged: it is not the file that"):
        read(result_path(run))
    result_path(run).write_text(json.dumps(sealed(json.loads(result_path(run).read_text()))))
    assert read(result_path(run)).metrics, "a sealed one says itself whether it is whole"


def test_what_is_measured_again_takes_the_place_of_a_file_that_is_named(tmp_path):
    path = tmp_path / "bench" / "step-quick-gpu.json"
    path.parent.mkdir()
    path.write_text('{"ms": 1}')
    digests.add(path)
    assert checked(path, dict, "again") == {"ms": 1}
    write_sealed(path, {"ms": 2})
    assert checked(path, dict, "again") == {"ms": 2}
    assert digests.read(tmp_path / digests.FILE) == {}


def spectrum(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kinds": {kind: {"above_0.1": 3.0} for kind in MODULES}} | more))


def test_another_runs_spectrum_is_refused(run):
    path = spectrum_path(run)
    spectrum(path, run_id=run_id(run))
    assert spectrum_of(run).kinds["q_proj"] == {"above_0.1": 3.0}
    spectrum(path, run_id="c4-lora-r128-lr2e-3-s0-0123456789")
    with pytest.raises(
        DamagedFileError, match=r"spectra/\S+ is damaged: it is the spectrum of c4-lora-r128\S+; bring back"
    ):
        spectrum_of(run)
    spectrum(path)  # an early one, which names no run
    digests.add(path)
    assert spectrum_of(run)
    spectrum(path, modules={})
    with pytest.raises(DamagedFileError, match=r"it is not the file that \S+digests.txt has the sha256 of"):
        spectrum_of(run)
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))  # as one that is measured again
    assert spectrum_of(run)
    assert _without_evidence(result_path(run).parent) == {}


def test_a_run_that_is_made_again_is_no_longer_named(run):
    other = documents_path(run).with_name("other.jsonl.zst")
    other.write_bytes(b"")
    for path in (documents_path(run), log_path(run), other):
        digests.add(path)
    launch.repeat(run)
    score(run, [1, 1])
    assert pairing._of_run(run)
    assert list(digests.read(documents_path(run).parent.parent / digests.FILE)) == ["documents/other.jsonl.zst"]


def test_a_line_that_sha256sum_would_not_print_is_named(run):
    file = documents_path(run).parent.parent / digests.FILE
    file.write_text(f"{'0' * 64}  documents/a.jsonl.zst\n{'0' * 63} documents/b.jsonl.zst\n")
    with pytest.raises(DamagedFileError, match=r"digests\.txt:2 is damaged: expected a sha256"):
        pairing._of_run(run)
