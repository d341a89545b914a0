"""README's picture: what colours and grey bands mean, where the line stands, and on which side an effect agrees."""

from __future__ import annotations

import pytest
from matplotlib import pyplot as plt

from mora.suite.claims import Claim
from mora.suite.ledger import Outcome
from mora.suite.report.findings import LINE, Finding
from mora.suite.report.forest import forest
from mora.suite.verdicts import Interval

R8, R256 = "r=4 (the paper's 8)", "r=96 (the paper's 256)"
ROWS = {"first": {"method": "mora", "r": 8}, "second": {"method": "lora", "r": 8}}


def finding(verdict="shown", ranks=(R8,), sign=1, **claim):
    claim = Claim.model_validate({"says": "MoRA is like LoRA", "where": "", "experiment": "table1", **ROWS, **claim})
    names = [f"MoRA {ranks[0]}", f"LoRA {ranks[-1]}"]
    outcome = Outcome(verdict, *names, "a model", 1.0, Interval(0.5, 1.5), 3, 3, ranks=list(ranks), sign=sign)
    return Finding(1, claim, "mid", outcome, [], {})


@pytest.fixture
def drawn():
    yield forest
    plt.close("all")


def texts(figure):
    return [text.get_text() for text in figure.legends[0].texts]


def test_the_legend_names_every_verdict_that_is_drawn_and_no_other(drawn):
    figure = drawn([finding("shown"), finding("equal", test="equal", margin=2.0), finding("floor")])
    assert texts(figure)[:3] == ["shown", "equal", "floor"]
    colours = {line.get_label(): line.get_color() for line in figure.legends[0].legend_handles[:3]}
    assert len(set(colours.values())) == 3
    assert "margin" in texts(figure)


def test_a_row_says_what_was_compared_and_at_which_rank(drawn):
    equal = finding("equal", test="equal", margin=2.0)
    assert equal.heading == f"MoRA is like LoRA\nequal within 2: MoRA - LoRA, {R8}, 3 seeds"
    assert finding(ranks=(R8, R256)).contrast == f"MoRA {R8} - LoRA {R256}"
    for words in (23, 40):
        assert max(map(len, finding(says="word " * words).heading.split("\n"))) <= LINE
    assert drawn([equal]).axes[0].get_title(loc="left") == "Table 1; mid, a model"


def test_a_margin_is_a_band_which_ends_at_zero_for_a_closed_gap(drawn):
    claims = [finding(), finding("equal", test="equal", margin=2.0), finding(test="closes", margin=3.0)]
    bands = [band.get_paths()[0].get_extents() for band in drawn(claims).axes[0].collections]
    assert [(band.x0, band.x1) for band in bands] == [(-2.0, 2.0), (-3.0, 0.0)]


def test_the_axis_says_on_which_side_an_effect_agrees(drawn):
    def axis(*findings):
        return drawn(list(findings)).axes[0].get_xlabel()

    assert axis(finding()) == "first minus second, points (right of 0: agrees)"
    assert axis(finding(unit="nats", sign=-1)) == "first minus second, nats, the log of perplexity (left of 0: agrees)"
    equal = finding("equal", test="equal", margin=2.0)
    assert axis(finding(), equal) == "first minus second, points (without a margin, right of 0: agrees)"
    assert axis(equal) == "first minus second, points"


def test_the_line_of_a_ratio_stands_at_its_bar(drawn):
    ratio = {"shape": "large", "slow": "mora", "fast": "lora", "at_most": 1.03, "paper": 1.03}
    (ax,) = drawn([finding(ratio=ratio, experiment="", sign=-1)]).axes
    assert ax.lines[-1].get_xdata()[0] == 1.03
    assert ax.get_title(loc="left") == "Benchmark, shape of a model"
    assert ax.get_xlabel() == "first over second, times (up to the line: agrees)"
