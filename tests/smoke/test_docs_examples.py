"""What a stranger computes from the committed files is what the ledger says."""

import runpy
import subprocess
import sys

import pytest

from mora.config.source import ROOT
from mora.evaluate import compare, documents
from mora.evaluate.kept import Kept
from mora.suite import ledger, verdicts
from mora.suite.claims import load

SCRIPT = ROOT / "docs/examples/recompute.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_interval_over_seeds_is_the_ledgers(script):
    table = [claim for claim in load().claims if claim.experiment == "table2"]
    wanted = next(i for i, claim in enumerate(table) if claim.first.r == 256 and claim.first.method == "mora")
    assert script["over_seeds"]() == pytest.approx(tuple(ledger.judge(table, "lite")[wanted].interval))


def test_the_interval_over_documents_is_that_of_compare(script, tmp_path):
    items = {"a": [1.0, 0.0, 1.0, 1.0] * 100, "b": [1.0, 0.0, 0.0, 1.0] * 100}
    for name, scores in items.items():
        header = {"task": "t", "aggregation": "mean", "headline": "score", "prompts": "p"}
        documents.write(tmp_path / f"{name}.zst", {"t": Kept(header, [{"cluster": None, "score": s} for s in scores])})
    ((task, (low, high)),) = script["over_documents"](tmp_path / "b.zst", tmp_path / "a.zst")
    found = compare.compare(*(documents.read(tmp_path / f"{name}.zst")["t"] for name in ("a", "b")))
    assert task == "t"
    assert (low, high) == pytest.approx((100 * found.low, 100 * found.high), abs=0.3)


def test_the_exact_interval_is_the_ledgers(script):
    low, _ = script["exact"](7, 500)
    (of_difference, _), _ = verdicts.exact(7, 500, 0, 500)
    assert low / 100 >= of_difference


def test_the_script_runs_without_the_package():
    made = subprocess.run([sys.executable, "-I", str(SCRIPT)], capture_output=True, text=True, check=True)
    assert "MoRA - LoRA, r=32: [+" in made.stdout
