"""The figure of learning rates: whose searches share a panel, over which seeds an order is, and what is left out."""

import csv

import pytest
from made_up import write

from mora.config import run_id, source
from mora.suite import experiments
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve, resolve_all
from mora.suite.report import rate_figure, rate_panels


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Write the search of a method at r=4 in mathematics, scale mid; `again` are the losses of the best two on seed 1."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    cells = [spec for row in cell_specs(experiments.load("table1"), "mid") for spec in row]

    def search(method, losses, again=(), **changed):
        of_method = [spec for spec in cells if (spec.row.method, spec.row.r or 4) == (method, 4)]
        spec = next(spec for spec in of_method if spec.column.task == "metamath")
        for config, loss in zip(spec.search_runs, losses, strict=False):
            write(config, {"validation_loss": loss}, **changed)
        for config, loss in zip(resolve(spec).choice.missing, again, strict=False):
            write(config, {"validation_loss": loss})
        return spec

    return search


def gathered(*names):
    return [resolve_all(cell_specs(experiments.load(name), "mid")) for name in names]


def panel():
    (one,) = [p for p in rate_panels.panels(gathered("table1")) if (p.config.task.name, p.config.r) == ("metamath", 4)]
    return one


def test_an_order_is_over_the_seeds_that_all_have(measure):
    lora = measure("lora", (0.59, 0.56, 0.55, 0.57), again=(0.54, 0.58))
    measure("mora", (0.56, 0.551, 0.58, 0.79))
    one = panel()
    assert one.common == [c.lr for c in lora.search_space]
    best, second = one.order(one.own), one.at(1e-3)
    assert best == ({"LoRA": 0.55, "MoRA, rotation": 0.551}, 1), (
        "seed 1 of LoRA alone is not compared with seed 0 of MoRA"
    )
    assert second == ({"LoRA": 0.55, "MoRA, rotation": 0.58}, 1)
    measure("mora", (0.56, 0.551, 0.58, 0.79), again=(0.53, 0.57))
    order, seeds = panel().order(panel().own)
    assert (list(order), seeds) == (["MoRA, rotation", "LoRA"], 2)
    assert order == pytest.approx({"MoRA, rotation": 0.5405, "LoRA": 0.545})
    assert panel().same == 2, "at 1e-4 and 3e-4"
    assert panel().turns


def test_one_order_at_every_rate_does_not_turn(measure):
    measure("lora", (0.59, 0.56, 0.55, 0.57))
    measure("mora", (0.58, 0.55, 0.54, 0.56))
    assert (panel().same, panel().turns) == (4, False)


def test_a_search_that_is_not_complete_has_no_own_rate_and_a_diverged_run_is_last(measure):
    measure("lora", (0.59, 0.56))
    measure("mora", (0.58, 0.55, 0.54))
    mora = measure("mora", ())
    write(mora.search_runs[3], {}, status="diverged")
    one = panel()
    assert one.own == {"MoRA, rotation": mora.search_space[2].lr}
    assert one.common == [c.lr for c in mora.search_space[:2]]
    write(measure("lora", ()).search_runs[3], {"validation_loss": 0.7})
    assert list(panel().at(3e-3)[0]) == ["LoRA", "MoRA, rotation"]
    line = rate_figure._line(panel())
    assert "3e-3, n=1: LoRA; MoRA, rotation diverged" in line
    assert "LoRA (not complete)" in line
    assert "ReLoRA; AsyLoRA; DoRA" in line


def test_a_search_that_has_begun_takes_no_common_rate_from_complete_ones(measure):
    lora = measure("lora", (0.59, 0.56, 0.55, 0.57), again=(0.54, 0.60))
    measure("relora", (0.60, 0.57, 0.56, 0.58), again=(0.55, 0.56))
    before = panel().same, panel().turns
    measure("mora", (0.54, 0.53))
    assert panel().common == [c.lr for c in lora.search_space]
    assert list(panel().at(1e-4)[0]) == ["MoRA, rotation", "LoRA", "ReLoRA"]
    assert list(panel().at(1e-3)[0]) == ["LoRA", "ReLoRA"]
    assert (panel().same, panel().turns) == before == (3, True), (
        "at 3e-4 both have two seeds, and the one that MoRA has decides nothing"
    )


def test_two_experiments_share_a_curve_and_full_training_stands_beside_each_rank(measure):
    measure("mora", (0.56, 0.551, 0.58, 0.79))
    measure("fft", (0.55, 0.54, 0.56, 0.66))
    found = [p for p in rate_panels.panels(gathered("table1", "table4")) if p.config.task.name == "metamath"]
    assert [(p.config.r, [c.label for c in p.searched]) for p in found] == [
        (4, ["FFT", "MoRA, rotation"]),
        (96, ["FFT"]),
    ]
    assert [c.label for c in found[0].curves.values() if c.label.startswith("MoRA")] == [
        *("MoRA, rotation", "MoRA, truncation", "MoRA, sharing", "MoRA, decouple")
    ], "Table 1's MoRA, which names no operator, is rotation at r=4"


def test_the_files_hold_every_search_run_and_no_final_one(measure, tmp_path):
    assert rate_figure.render("mid", gathered("table1"), tmp_path / "out") is None
    lora = measure("lora", (0.59, 0.56, 0.55, 0.57), again=(0.54, 0.58))
    assert rate_figure.render("mid", gathered("table1"), tmp_path / "out") is None, "one method has no order"
    mora = measure("mora", (0.56, 0.551, 0.58, 0.79))
    for config in resolve(mora).final_runs:
        write(config, {"validation_loss": 0.123})
    path = rate_figure.render("mid", gathered("table1", "table4"), tmp_path / "out")
    first, text = path.read_bytes(), path.with_suffix(".md").read_text()
    assert (
        "| metamath, qwen25_coder_1b5, r=4 (the paper's 8) | 100 | 1e-4, n=1: MoRA, rotation; LoRA +0.0300<br>" in text
    )
    assert "n=1: LoRA (1e-3); MoRA, rotation (3e-4) +0.00100 | 2 of 4 | FFT; LoRA+; ReLoRA;" in text
    assert (
        "| biomed, qwen25_coder_1b5, r=4 (the paper's 8) | - | FFT; LoRA; LoRA+; ReLoRA; AsyLoRA; DoRA; MoRA, rotation |"
        in text
    )
    with open(path.with_suffix(".csv")) as file:
        lines = list(csv.DictReader(file))
    again = [config.model_copy(update={"seed": 1}) for config in (lora.search_runs[2], lora.search_runs[1])]
    assert {line["run"] for line in lines} == {run_id(c) for c in (*lora.search_runs, *again, *mora.search_runs)}
    assert [(line["method"], line["lr"], line["seed"]) for line in lines if line["chosen"] == "True"] == [
        *(("LoRA", "1e-3", "0"), ("LoRA", "1e-3", "1"), ("MoRA, rotation", "3e-4", "0"))
    ]
    rate_figure.render("mid", gathered("table1", "table4"), tmp_path / "out")
    assert path.read_bytes() == first


def test_a_panel_ends_below_what_lies_far_above():
    assert rate_figure._top([4.7, 4.75, 4.8, 4.9, 6.9, 7.1]) == 4.9
    assert rate_figure._top([52, 57, 63, 75, 86, 101]) == 101
    assert rate_figure._top([1.0, 9.0]) == 9.0
    assert rate_figure._top([1.74, 1.75, 1.77, 1.84, 1.91, 2.09]) == 2.09, "a rate that is bad, not one that diverges"


def test_a_search_that_diverged_leaves_the_axis_linear(measure):
    measure("lora", (0.59, 0.56, 0.55, 0.57))
    measure("mora", (0.55, 0.549, 0.58, 7.9))
    (axes,) = rate_figure.drawn([panel()]).axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[1] < 0.6


def test_the_legend_lies_below_what_is_written_under_the_panels(measure):
    for method in ("lora", "mora", "relora", "lora_plus", "asylora", "dora"):
        measure(method, (0.59, 0.56, 0.55, 0.57))
    figure = rate_figure.drawn([panel()])
    figure.canvas.draw()
    written = figure.axes[0].xaxis.label.get_window_extent()
    assert figure.legends[0].get_window_extent().y1 <= written.y0


def test_methods_differ_in_their_marks_where_colours_cannot_be_seen(measure):
    for method in ("lora", "mora", "relora"):
        measure(method, (0.59, 0.56, 0.55, 0.57))
    figure = rate_figure.drawn([panel()])
    marks = [line.get_marker() for line in figure.axes[0].lines if line.get_linestyle() != "None"]
    assert len(marks) == len(set(marks)) == 3


def test_operators_have_a_panel_of_their_own_and_methods_keep_the_usual_one(measure):
    measure("lora", (0.59, 0.56, 0.55, 0.57))
    measure("mora", (0.56, 0.551, 0.58, 0.79))
    assert [view.what for view in rate_figure.views([panel()])] == ["metamath"]
    rows = cell_specs(experiments.load("table4"), "mid")
    decouple = next(row[0] for row in rows if row[0].row.operator == "decouple")
    for config, loss in zip(decouple.search_runs, (0.55, 0.552, 0.59, 0.8), strict=True):
        write(config, {"validation_loss": loss})
    found = [p for p in rate_panels.panels(gathered("table1", "table4")) if p.config.task.name == "metamath"]
    methods, operators = rate_figure.views([p for p in found if p.config.r == 4])
    assert [curve.label for curve in methods.curves] == ["LoRA", "MoRA, rotation"]
    assert (operators.what, [curve.label for curve in operators.curves]) == (
        *("metamath: MoRA's operators", ["MoRA, rotation", "MoRA, decouple"]),
    )
    lines = [line for line in rate_figure.drawn([operators.panel]).axes[1].lines if line.get_linestyle() != "None"]
    assert len({line.get_color() for line in lines}) == 2


def test_a_panel_ends_near_its_choices_and_marks_what_lies_above(measure):
    lora = measure("lora", (0.70, 0.56, 0.55, 0.57))
    measure("mora", (0.56, 0.551, 0.58, 0.60))
    (axes,) = rate_figure.drawn([panel()]).axes
    assert axes.get_ylim()[1] == pytest.approx(0.55 + rate_figure.NEAR, abs=0.01)
    above = [line for line in axes.lines if line.get_marker() == rate_figure.CARETUP and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in above] == [[lora.search_space[0].lr]]


def test_the_caption_names_full_training_where_it_lies_far_below_a_panel(measure):
    measure("lora", (0.59, 0.56, 0.55, 0.57))
    measure("mora", (0.56, 0.551, 0.58, 0.79))
    measure("fft", (0.02, 0.03, 0.04, 0.05))
    name = "metamath, qwen25_coder_1b5, r=4 (the paper's 8)"
    text = f"Far below a panel, and not drawn: FFT in {name}, whose lowest loss is 0.02."
    assert rate_figure._below([panel()]) == text
    (axes,) = rate_figure.drawn([panel()]).axes
    assert axes.get_xlabel() == "learning rate"
    assert axes.get_ylim()[0] > 0.5
