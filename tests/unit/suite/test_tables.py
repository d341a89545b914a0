"""Table 2 at lite scale from results made up for the test: what is complete is shown, the rest is "not run"."""

import json

import pytest

from mora.config.run_id import format_lr
from mora.suite import experiment as experiments
from mora.suite import launch, tables
from mora.suite.experiment import Grid


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "ROOT", tmp_path)
    experiment = experiments.load("table2")
    row = next(row for row in experiment.scales["lite"].rows if row.method == "lora" and row.r == 1)
    return Grid(experiment, "lite", row)


def write(config, value_nll, accuracy=0.5, status="done", dirty=False):
    path = launch.result_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = {
        str(s): {"uuid_char_acc": accuracy, "value_nll": value_nll} for s in (300, 500, 700, 900, config.last_step)
    }
    source = {"commit": None, "fingerprint": "", "dirty": dirty}
    result = {
        "status": status,
        "last_step": config.last_step,
        "metrics": steps,
        "source": source,
        "parameters": {"trainable": 1234},
    }
    path.write_text(json.dumps(result))


def test_the_rate_with_the_lowest_selection_metric_is_chosen_once_all_are_there(grid):
    search = grid.search()
    assert [c.last_step for c in search] == [300, 300, 300]
    for config, nll in zip(search[:2], (3.0, 1.0), strict=True):
        write(config, nll)
    assert grid.best_lr() is None
    assert grid.final() == []
    write(search[2], 0.5, status="diverged")
    assert grid.best_lr() == search[1].lr
    assert [(c.seed, c.lr, c.last_step) for c in grid.final()] == [(s, search[1].lr, 1000) for s in (0, 1, 2)]


def test_a_cell_needs_every_seed_and_committed_source(grid, tmp_path):
    for config, nll in zip(grid.search(), (3.0, 1.0, 2.0), strict=True):
        write(config, nll)
    finals = grid.final()
    for config, accuracy in zip(finals[:2], (0.4, 0.5), strict=True):
        write(config, 1.0, accuracy)
    assert tables.cell_values(grid, 900) is None
    write(finals[2], 1.0, 0.9, dirty=True)
    assert tables.cell_values(grid, 900) is None
    write(finals[2], 1.0, 0.6)
    assert tables.cell_values(grid, 900) == pytest.approx([40, 50, 60])
    text = tables.render("table2", grid.experiment, [grid], "lite", tmp_path / "out").read_text()
    first, best, last = (format_lr(config.lr) for config in grid.search())
    assert f"| LoRA r=1 (as 8) | 1,234 | {best} | 9.9 \\| 50.0 +- 10.0 (3) \\| +40.1 |" in text
    assert f"{first}: 3, {best}: 1, {last}: 2" in text
    csv = (tmp_path / "out" / "table2-lite.csv").read_text()
    assert f"lora,1,,{best},300,9.9,50.0000,10.0000,3,40.0000 50.0000 60.0000" in csv


def test_a_row_that_was_not_run_says_so(grid, tmp_path):
    text = tables.render("table2", grid.experiment, [grid], "lite", tmp_path / "out").read_text()
    assert text.count("not run") == 1 + 4 + 3
