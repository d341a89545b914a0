"""Curves of training loss: which seeds they need, what is subtracted from what, and which steps are marked."""

import pytest
from made_up import write
from matplotlib import pyplot as plt

from mora.config import source
from mora.config.run_id import result_path
from mora.suite import experiments, figures, loss_curves
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve, resolve_all


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    yield
    plt.close("all")


def cells_of(name, scale, column=0):
    return [row[column] for row in cell_specs(experiments.load(name), scale) if row[column].exists]


def run_all(spec, losses, steps=range(1, 11), **result):
    """Write a search, and final runs with a constant loss each."""
    for run in spec.search_runs:
        write(run, {spec.experiment.selection: abs(run.lr - 3e-4)})
    for run in resolve(spec).choice.missing:
        write(run, {spec.experiment.selection: 1.0})
    for run, loss in zip(resolve(spec).final_runs, losses, strict=False):
        rows = [{"step": step, "loss": loss} | ({"restart": 1.0} if step == 4 else {}) for step in steps]
        write(run, {}, log_rows=rows, **result)


def test_a_curve_needs_every_seed_to_its_end_and_committed_source():
    spec = cells_of("figure3", "lite")[0]
    rows = [{"step": step, "loss": 1.0} for step in (1, 2)]
    for config in spec.search_runs:
        write(config, {"value_nll": config.lr}, steps=(300,))
    for config in resolve(spec).final_runs:
        write(config, {}, log_rows=rows)
    assert [len(curve) for curve in loss_curves.by_seed(resolve(spec)).values()] == [2, 2, 2]
    last = resolve(spec).final_runs[-1]
    for unusable in ({"dirty": True}, {"status": "diverged"}):
        write(last, {}, **unusable)
        assert loss_curves.shown(resolve(spec)) == []
    write(last, {})
    write(spec.search_runs[-1], {"value_nll": 9.0}, dirty=True)
    assert loss_curves.shown(resolve(spec)) == []


def test_a_loss_minus_the_first_rows_is_taken_seed_by_seed():
    lora, relora, stale, _ = cells_of("figure_restarts", "mid")
    run_all(lora, (0.5, 0.7))
    run_all(relora, (0.51, 0.73))
    experiment = experiments.load("figure_restarts")
    (ax,) = figures.drawn(experiment, resolve_all([[lora], [relora], [stale]]), "mid").axes
    curve, restart, zero = ax.lines
    assert list(curve.get_ydata()) == pytest.approx([0.02] * 10)
    assert (curve.get_label(), list(zero.get_ydata())) == ("clean restarts", [0, 0])
    assert (restart.get_label(), list(restart.get_xdata())) == ("restart", [4, 4])
    assert (
        ax.get_title()
        == "scale mid, ReLoRA, metamath\nminus LoRA r=96 (the paper's 256); not drawn: stale masters (not run)"
    )
    for run in resolve(lora).final_runs:
        result_path(run).unlink()
    (ax,) = figures.drawn(experiment, resolve_all([[lora], [relora], [stale]]), "mid").axes
    assert not ax.lines, "there is nothing to subtract"


def test_a_difference_is_drawn_of_the_seeds_that_both_have_and_says_so():
    lora, relora, *_ = cells_of("figure_restarts", "mid", column=2)
    run_all(lora, (0.5, 0.7))
    run_all(relora, (0.51,))
    (curve,) = loss_curves.curves([resolve(lora), resolve(relora)])
    assert curve.losses[:, -1] == pytest.approx([0.01])
    (ax,) = figures.drawn(experiments.load("figure_restarts"), resolve_all([[lora], [relora]]), "mid").axes
    assert ax.get_title().endswith("; clean restarts, 1 of 2 seeds")


def test_a_figure_of_several_panels_leaves_out_what_a_panel_has_not():
    for column, seeds in ((0, (0.5, 0.7)), (1, (0.6, 0.8))):
        for spec in cells_of("figure_restarts", "mid", column)[:2]:
            run_all(spec, seeds)
    rows = resolve_all(cell_specs(experiments.load("figure_restarts"), "mid"))
    figure = figures.drawn(experiments.load("figure_restarts"), rows, "mid")
    assert [ax.get_title().splitlines()[0].removeprefix("scale mid, ") for ax in figure.axes] == [
        *("ReLoRA, metamath", "ReMoRA, metamath", "ReLoRA, biomed", "ReMoRA, biomed")
    ]
    assert [text.get_text() for text in figure.legends[0].texts] == ["clean restarts", "restart"]
    narrow = figures.drawn(experiments.load("figure_restarts"), rows, "mid", width=3.35)
    assert narrow.get_size_inches()[0] == 3.35


def test_epochs_are_marked_where_they_are_few():
    spec = cells_of("figure4", "lite")[0]
    run_all(spec, (1.0, 1.0, 1.0), data={"report": {"sequences": 89576}})
    config, result = resolve(spec).results[0]
    assert loss_curves.epoch_ends(config, result) == [700, 1400]
    many = result.model_copy(update={"data": {"report": {"sequences": 1280}}})
    assert loss_curves.epoch_ends(config, many) == []
    assert loss_curves.epoch_ends(config, result.model_copy(update={"data": {}})) == []


@pytest.mark.parametrize(("scores", "word"), [((50.0, 40.0), "otherwise"), ((40.0, 50.0), "alike")])
def test_a_caption_puts_the_tables_order_beside_that_of_the_losses(tmp_path, scores, word):
    fft, lora = cells_of("figure4", "lite")[:2]
    for spec, loss, score in zip((fft, lora), (3.0, 4.0), scores, strict=True):
        run_all(spec, (loss,) * 3)
        for run in resolve(spec).final_runs:
            write(run, {"c4_perplexity_local.score": score})
    path = figures.render("figure4", fft.experiment, resolve_all([[fft], [lora]]), "lite", tmp_path)
    caption = path.with_suffix(".md").read_text()
    assert "this is loss on training sequences. At the end, best first: FFT 3.00, LoRA r=128 4.00." in caption
    assert f"Table 3 scores the same runs on held-out text, and ranks them {word}: " in caption
