"""A choice that repeats: rates beyond an edge, a second seed of the best two, and what stands until they are run."""

import math
from dataclasses import replace

import pytest
from made_up import write

from mora.config import source
from mora.config.cached_composition import compose_cached as compose
from mora.config.run_id import format_lr
from mora.suite import __main__ as suite
from mora.suite import experiments, runner, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import in_order, resolve, resolve_all
from mora.suite.commands import words
from mora.suite.selection import next_rate
from mora.suite.usable import is_current


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """LoRA r=1 in mathematics, Table 1 at scale lite: four rates, three seeds."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    rows = cell_specs(experiments.load("table1"), "lite")
    (row,) = (row for row in rows if (row[0].row.method, row[0].row.r) == ("lora", 1))
    cell_spec = next(cell for cell in row if cell.column.task == "metamath")
    assert cell_spec.at_scale.repeats
    assert len(cell_spec.search_runs) == 4
    return cell_spec


def measure(runs, losses):
    for config, loss in zip(runs, losses, strict=True):
        write(config, {"validation_loss": loss})


def again(spec, losses):
    more = resolve(spec).choice.missing
    measure(more, losses)
    return more


def test_a_rate_within_its_grid_is_repeated_on_a_second_seed_before_the_finals(spec):
    measure(spec.search_runs, (3.0, 1.0, 1.1, 4.0))
    resolved = resolve(spec)
    assert [c for c in resolved.choice.missing] == [spec.search_runs[i].model_copy(update={"seed": 1}) for i in (1, 2)]
    assert resolved.selected == spec.search_space[1], "what the first seed chose stands until then"
    assert runner.startable([spec]) == resolved.choice.missing
    again(spec, (1.0, 1.2))
    resolved = resolve(spec)
    assert (resolved.choice.missing, resolved.selected, resolved.choice.reversed) == ([], spec.search_space[1], False)
    assert [c.seed for c in runner.startable([spec])] == [0, 1, 2]


@pytest.mark.parametrize(("beyond", "at_edge"), [(2.0, False), (0.5, True), ("nan", False)])
def test_a_choice_at_the_edge_takes_note_of_the_next_rate_where_another_search_ran_it(spec, tmp_path, beyond, at_edge):
    once = replace(spec, at_scale=spec.at_scale.model_copy(update={"repeats": False}))
    measure(once.search_runs, (4.0, 3.0, 1.1, 1.0))
    choice = resolve(once).choice
    assert (choice.at_edge, choice.on_record) == (True, ())
    (added,) = resolve(spec).choice.missing
    write(added, {"validation_loss": beyond})
    choice = resolve(once).choice
    assert (choice.at_edge, choice.selected) == (at_edge, once.search_space[3])
    text = "\n".join(tables._search_lines(once.experiment, [[resolve(once)]]))
    score = "diverged" if beyond == "nan" else f"{beyond:.4g}"
    assert f"{format_lr(added.lr)}: {score} (of another search)" in text


@pytest.mark.parametrize(("losses", "chosen"), [((1.3, 0.9), 2), ((1.04, 1.0), 1)])
def test_a_second_seed_that_reverses_the_choice_is_marked(spec, tmp_path, losses, chosen):
    measure(spec.search_runs, (3.0, 1.0, 1.1, 4.0))
    again(spec, losses)
    resolved = resolve(spec)
    assert (resolved.selected, resolved.choice.reversed) == (spec.search_space[chosen], True), "the lower mean wins"
    row = resolve_all([[spec]])
    text = tables.render("table1", spec.experiment, row, "lite", tmp_path / "out").read_text()
    assert "(chosen, a second seed reverses it)" in text
    assert f"1.1 and {losses[1]:.4g}" in text


def test_a_rate_at_the_edge_adds_the_next_until_it_is_inside(spec, tmp_path):
    measure(spec.search_runs, (4.0, 3.0, 2.0, 1.0))
    top = spec.search_space[-1].lr
    (added,) = resolve(spec).choice.missing
    assert added == spec.search_runs[0].model_copy(update={"lr": next_rate(top, 1)})
    assert resolve(spec).choice.at_edge
    measure([added], [1.5])
    resolved = resolve(spec)
    assert not resolved.choice.at_edge
    assert [c.lr for c in resolved.choice.missing] == [top, added.lr]
    text = tables.render("table1", spec.experiment, resolve_all([[spec]]), "lite", tmp_path / "out").read_text()
    assert "1.5 (added: the best was at the edge)" in text


def test_no_more_than_two_rates_are_added_and_the_edge_stays_marked(spec):
    measure(spec.search_runs, (1.0, 2.0, 3.0, 4.0))
    for loss in (0.9, 0.8):
        again(spec, [loss])
    resolved = resolve(spec)
    assert [c.seed for c in resolved.choice.missing] == [1, 1]
    assert resolved.choice.at_edge


def test_a_diverged_second_seed_loses(spec):
    measure(spec.search_runs, (3.0, 1.0, 1.1, 4.0))
    first, second = resolve(spec).choice.missing
    write(first, {}, status="diverged")
    measure([second], [1.2])
    assert resolve(spec).selected == spec.search_space[2]


def test_a_second_seed_of_changed_source_is_as_if_it_were_not_there(spec):
    measure(spec.search_runs, (3.0, 1.0, 1.1, 4.0))
    for config in resolve(spec).choice.missing:
        write(config, {"validation_loss": 1.0}, dirty=True)
    assert len(resolve(spec).choice.missing) == 2
    assert len(resolve(spec, is_current).choice.missing) == 2


def test_with_one_seed_nothing_is_repeated(spec):
    measure(spec.search_runs, (3.0, 1.0, 1.1, 4.0))
    (row,) = (r for r in cell_specs(experiments.load("table1"), "lite", seeds=[0]) if r[0].row == spec.row)
    alone = next(cell for cell in row if cell.column == spec.column)
    assert resolve(alone).choice.missing == []


@pytest.mark.parametrize(
    ("lr", "above", "below"), [(1e-3, 3e-3, 3e-4), (3e-4, 1e-3, 1e-4), (3e-2, 1e-1, 1e-2), (4e-3, 1e-2, 1e-3)]
)
def test_the_next_rate_is_half_a_decade_on(lr, above, below):
    assert math.isclose(next_rate(lr, 1), above)
    assert math.isclose(next_rate(lr, -1), below)


def test_it_is_said_once_why_a_run_is_added(spec, capsys):
    said = set()
    measure(spec.search_runs, (4.0, 3.0, 2.0, 1.0))
    runner.startable([spec], said)
    runner.startable([spec], said)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "metamath LoRA r=1 (the paper's 8): the best rate, 0.01, is the highest tried, so 0.03 is added"
    again(spec, (1.5,))
    runner.startable([spec], said)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("the rate 0.01 is one of the best two, so it is tried on seed 1, too")
    assert second.endswith("the rate 0.03 is one of the best two, so it is tried on seed 1, too")


def test_what_is_begun_and_what_is_repeated_includes_what_a_choice_asked_for(spec):
    measure(spec.search_runs, (4.0, 3.0, 2.0, 1.0))
    asked = [*again(spec, (1.5,)), *again(spec, (1.0, 1.2))]
    assert len(asked) == 3
    cell = resolve(spec)
    assert [run.config for run in cell.planned_search_runs] == [*spec.search_runs, *asked]
    assert [run.config for run in in_order([cell])] == [*spec.search_runs, *asked, *cell.final_runs]
    assert all(compose([*words(*run)]) == run.config for run in in_order([cell]))
    assert [config.seed for config in suite._known([spec])] == [0, 0, 0, 0, 0, 1, 1, 0, 1, 2], "FORCE=1 sets all aside"
