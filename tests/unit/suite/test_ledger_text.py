"""What the pages say of a verdict: README, the full ledger, margins, ranks and columns."""

from dataclasses import replace

import pytest
from judged import BETTER, FASTER, answered, memorised, said

from mora.suite import ledger, ledger_text
from mora.suite.claims import Claim
from mora.suite.contrasts import ResolvedTables

pytestmark = pytest.mark.usefixtures("nothing_measured")


def test_the_ledger_is_written_between_its_markers_and_in_full(tmp_path):
    page, full = tmp_path / "README.md", tmp_path / "claims.md"
    page.write_text(f"before\n{ledger_text.BEGIN}\nold\n{ledger_text.END}\nafter\n")
    ledger_text.render(page, full)
    assert (
        page.read_text()
        == f"before\n{ledger_text.BEGIN}\n{ledger_text.summary()}\n\n{ledger_text.table()}\n{ledger_text.END}\nafter\n"
    )
    assert full.read_text() == ledger_text.page()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="once each"):
        ledger_text.render(page, full)


def test_the_ledger_never_says_the_papers_rank_without_ours():
    memorised("mora", (0.90, 0.91, 0.92))
    memorised("lora", (0.50, 0.51, 0.52))
    assert "lite: MoRA r=1 (the paper's 8) - LoRA r=1 (the paper's 8) | **shown**" in ledger_text.table()
    assert "(as " not in ledger_text.page()


def test_the_readme_shows_what_the_results_give(monkeypatch):
    monkeypatch.undo()
    resolved = ResolvedTables()
    shown = f"{ledger_text.summary(resolved)}\n\n{ledger_text.table(resolved)}"
    assert f"{ledger_text.BEGIN}\n{shown}\n{ledger_text.END}" in ledger_text.PAGE.read_text()
    assert ledger_text.FULL.read_text() == ledger_text.page(resolved)


def test_an_equality_names_its_margin():
    answered("mora", (0.500, 0.502, 0.504))
    answered("lora", (0.501, 0.503, 0.505))
    claim = Claim.model_validate(BETTER | {"test": "equal", "margin": 2.5})
    outcome = said(BETTER, test="equal", margin=2.5)
    assert ledger_text.verdict_text(claim, outcome).startswith("**equal** within 2.5 points")
    undecided = replace(outcome, verdict="undecided")
    assert ledger_text.verdict_text(claim, undecided).startswith("**undecided** at a margin of 2.5 points")
    assert ledger_text.within(claim, replace(outcome, verdict="floor")) == ""


def test_a_contrast_of_other_columns_names_them():
    page = ledger_text.FULL.read_text()  # what the results give, says the test of README
    assert "| mid, qwen25_coder_1b5; r256 (here 96) | MoRA, sharing | MoRA, truncation |" in page
    assert "| mid, qwen25_coder_1b5; biomed_local | LoRA r=96 (the paper's 256) | ReLoRA r=96" in page
    assert "| benchmark, shape of llama2_7b | mora rotation r=8 | lora r=8 |" in page


def test_a_scale_whose_seeds_are_not_all_done_does_not_stand_for_a_claim_that_was_judged(monkeypatch):
    claim = Claim(**FASTER)
    done = ledger.Outcome("contradicted", "MoRA", "LoRA", "small", seeds=3, planned=3)
    begun = replace(done, verdict="undecided", seeds=1)
    for rows, verdict in (([done, begun], "contradicted"), ([begun, done], "contradicted"), ([begun], "undecided")):
        monkeypatch.setattr(
            ledger_text, "all_outcomes", lambda _, rows=rows: [(claim, "lite", outcome) for outcome in rows]
        )
        assert f": 1 {verdict}. " in ledger_text.summary()
        assert ledger_text.table().count("MoRA is faster") == ledger_text.table().count(f"**{verdict}**") == 1


def test_readme_names_what_was_decided_at_another_scale(monkeypatch):
    claim = Claim(**FASTER)
    lite = ledger.Outcome("contradicted", "MoRA", "LoRA", "small", seeds=3, planned=3)
    rows = [(claim, "lite", lite), (claim, "mid", replace(lite, verdict="undecided", notes=["in doubt: a run"]))]
    monkeypatch.setattr(ledger_text, "all_outcomes", lambda _: rows)
    assert "| **undecided**; in doubt: a run; at scale lite: contradicted |" in ledger_text.table()
    monkeypatch.setattr(ledger_text, "all_outcomes", lambda _: rows[::-1])
    assert "at scale" not in ledger_text.table(), "what is undecided elsewhere is not named"
