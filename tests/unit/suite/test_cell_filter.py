"""`--only` chooses cells by task, method, rank and operator, and refuses what no cell has."""

import re

import pytest
from all_cells import cells_of

from mora.config import ConfigError
from mora.suite.cell_filter import filter_cells


def test_only_some_cells_run(nothing_measured):
    cells = cells_of("table1", "lite")
    chosen = filter_cells(cells, ["task=metamath,biomed", "method=lora,mora", "r=1"])
    assert {(g.column.task, g.row.method, g.row.r) for g in chosen} == {
        (task, method, 1) for task in ("metamath", "biomed") for method in ("lora", "mora")
    }
    assert filter_cells(cells, []) == cells


@pytest.mark.parametrize(("scale", "r"), [("paper", 8), ("lite", 1)])
def test_some_operators_of_table_4_run_at_the_rank_of_its_column(scale, r, nothing_measured):
    chosen = filter_cells(cells_of("table4", scale), ["operator=sharing,truncation", f"r={r}"])
    assert [(g.row.operator, g.column.name, g.config.r) for g in chosen] == [
        ("truncation", "r8", r), ("sharing", "r8", r)
    ]  # fmt: skip


def test_rows_that_name_no_operator_are_chosen_by_the_one_that_they_use(nothing_measured):
    chosen = filter_cells(cells_of("table2", "mid"), ["operator=sharing"])
    assert {(g.row.method, g.row.operator, g.config.r) for g in chosen} == {("mora", None, 4), ("mora", None, 96)}


def test_an_operator_that_the_task_leaves_to_auto_is_the_one_that_it_becomes(nothing_measured):
    cells = cells_of("table1", "lite")
    for operator, rank in (("rotation", 1), ("sharing", 32)):
        chosen = filter_cells(cells, [f"operator={operator}"])
        assert {(g.row.method, g.config.r) for g in chosen if g.row.method == "mora"} == {("mora", rank)}


@pytest.mark.parametrize(
    ("filters", "complaint"),
    [
        (["seed=0"], "expected task=VALUE,..., method=VALUE,..., r=VALUE,..., operator=VALUE,..."),
        (["task=metamath,uuid"], "no cell has task=uuid; there are tulu2, metamath, biomed, finance"),
        (["r=8"], "no cell has r=8; there are 1, 32"),
        (["r=None"], "no cell has r=None; there are 1, 32"),
    ],
)
def test_a_filter_that_no_cell_can_pass_is_refused(filters, complaint, nothing_measured):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        filter_cells(cells_of("table1", "lite"), filters)
