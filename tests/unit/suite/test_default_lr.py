"""Without lr: what a search of the cell chose, else the middle of the grid, and where that is from."""

from made_up import write

from mora.config import compose, source
from mora.suite import experiments
from mora.suite.cell_specs import cell_specs
from mora.suite.default_lr import default_lr

RUN = ["task=uuid", "method=mora", "r=8", "scale=lite"]


def search():
    rows = cell_specs(experiments.load("table2"), "lite")
    return next(spec for row in rows for spec in row if (spec.row.method, spec.row.r) == ("mora", 8))


def test_the_rate_that_a_search_chose(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    spec = search()
    for i, config in enumerate(spec.search_runs):
        write(config, {spec.experiment.selection: 5.0 - (i == 1)}, steps=(300, 500, 700, 900))
    chosen, where = default_lr(compose(RUN))
    assert chosen.lr == spec.search_runs[1].lr
    assert where.startswith(f"the best of {len(spec.search_runs)} that ")  # of whichever experiment has that cell
    assert where.endswith(" tried at scale lite")
    assert "middle of the grid" in default_lr(compose([*RUN, "model.name=mine"]))[1], "of another model it says nothing"


def test_the_middle_of_the_grid_while_no_search_is_complete(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    for config in search().search_runs[:-1]:
        write(config, {"value_nll": 1.0}, steps=(300, 500, 700, 900))
    config = compose(RUN)
    chosen, where = default_lr(config)
    grid = config.lr_grid()
    assert chosen.lr == grid[len(grid) // 2] == config.lr
    assert where.startswith(f"the middle of the grid {grid[0]:g}, ")
