"""What a stranger computes from the committed files is what the ledger says."""

import ast
import io
import math
import runpy
import subprocess
import sys
import tokenize

import pytest

from mora.config.source import ROOT
from mora.evaluate import compare, documents
from mora.suite import ledger, pairing, verdicts
from mora.suite.claims import load

SCRIPT = ROOT / "docs/examples/recompute.py"
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)


@pytest.fixture(scope="module")
def intervals():
    return runpy.run_path(str(SCRIPT))


def test_the_intervals_over_seeds_are_the_ledgers_and_that_of_an_equality(intervals):
    table = [claim for claim in load().claims if claim.experiment == "table2"]
    wanted = next(i for i, claim in enumerate(table) if claim.first.r == 256 and claim.first.method == "mora")
    assert intervals["order"] == pytest.approx(tuple(ledger.judge(table, "lite")[wanted].interval), abs=1e-3)
    equality = table[wanted].model_copy(update={"test": "equal", "margin": 1.0})
    table[wanted] = equality
    assert intervals["equality"] == pytest.approx(tuple(ledger.judge(table, "lite")[wanted].interval), abs=1e-3)


def test_the_interval_over_documents_is_that_of_compare_and_of_the_ledgers_pairing(intervals):
    folder = ROOT / "results/documents"
    first, second = (
        documents.read(next(folder.glob(f"c4-{name}-r128-lr2e-3-s1-*")))["c4_perplexity_local"]
        for name in ("relora", "lora")
    )
    low, high = intervals["documents"]
    error = pairing._of_set([pairing.Part(1.0, [(first, second)])], "nats")
    assert (high - low) / 2 / 1.96 == pytest.approx(error, rel=0.1), "a bootstrap and a closed form"
    drawn = compare.compare(first, second)
    assert math.log(drawn.a / drawn.b) == pytest.approx((low + high) / 2, rel=1e-3)
    assert drawn.high < 0 < low, "ReLoRA's perplexity is higher"


def test_the_interval_over_seeds_and_documents_is_the_ledgers():
    table = [claim for claim in load().claims if claim.experiment == "table1"]
    wanted = next(
        i for i, claim in enumerate(table) if claim.says == "MoRA is on par with LoRA in mathematical reasoning"
    )
    both = runpy.run_path(str(SCRIPT.with_name("recompute_claim.py")))["both"]
    assert both == pytest.approx(tuple(ledger.judge(table, "mid")[wanted].interval), abs=1e-3)


def test_the_exact_interval_and_that_of_times_are_the_ledgers(intervals):
    expected, _ = verdicts.exact(7, 500, 5, 500)
    assert intervals["right"] == [7, 5]
    assert intervals["exact"] == pytest.approx([100 * limit for limit in expected])
    (claim,) = [claim for claim in load().claims if claim.ratio]
    assert intervals["times"] == pytest.approx(list(ledger.judge([claim], "paper")[0].interval))


def test_the_script_runs_without_the_package():
    made = subprocess.run([sys.executable, "-I", str(SCRIPT)], capture_output=True, text=True, check=True)
    assert [line.partition(":")[0] for line in made.stdout.splitlines()] == ["seeds", "documents", "exact", "times"]


@pytest.mark.parametrize("script", [SCRIPT, SCRIPT.with_name("recompute_claim.py")], ids=lambda path: path.stem)
def test_the_script_is_thirty_lines_of_code(script):
    text = script.read_text()
    docstring = ast.parse(text).body[0].end_lineno
    code = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in NO_CODE]
    lines = {line for t in code for line in range(t.start[0], t.end[0] + 1) if line > docstring}
    assert len(lines) <= 30
    assert "mora" not in {word for node in ast.walk(ast.parse(text)) for word in imported(node)}


def imported(node):
    if isinstance(node, ast.ImportFrom):
        return [str(node.module).partition(".")[0]]
    return [name.name.partition(".")[0] for name in node.names] if isinstance(node, ast.Import) else []
