"""Cells composed by parts are what Hydra composes of the same overrides."""

import json
import os

import pytest

from mora.config import ConfigError, cached_composition, compose
from mora.suite import experiments
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve


def cells():
    """One a task, method and scale: their last search run where there is one, else their run."""
    by_cell = {}
    for name in ("table1", "table2", "table3", "table4"):
        for scale in ("paper", "lite", "smoke"):
            for row in cell_specs(experiments.load(name), scale):
                for spec in row:
                    if spec.exists:
                        more = spec.search_space[-1].overrides if spec.search_runs else ()
                        searching = spec.at_scale.search if spec.search_runs else []
                        by_cell[spec.column.task, spec.row.method, scale] = (*spec.base, *more, *searching)
    return by_cell


def test_what_is_composed_by_parts_is_what_hydra_composes():
    overrides = list(cells().values())
    assert len(overrides) > 80
    for chosen in overrides[::4]:
        assert cached_composition.compose_cached(chosen) == compose(chosen), chosen


def test_of_two_methods_the_last_counts():
    overrides = ("task=uuid", "method=lora", "r=8", "scale=smoke", "method=mora")
    assert cached_composition.compose_cached(overrides) == compose(overrides)


def test_a_setting_within_a_list_is_changed_and_put_back():
    plain = ("task=c4", "method=lora", "r=8", "scale=lite")
    within = (*plain, "task.data.corpus.local.0.max_rows=60")
    assert cached_composition.compose_cached(within) == compose(within)
    assert cached_composition.compose_cached(plain) == compose(plain)


@pytest.mark.parametrize(
    "wrong", ["task=none_such", "train.nothing=1", "task.train.epochs=many", "r=-1", "method.name=mora"]
)
def test_a_wrong_override_is_refused_in_one_line(wrong):
    with pytest.raises(ConfigError, match=r"^[^\n]+$"):
        cached_composition.compose_cached(["task=uuid", "method=lora", "r=8", wrong])


def test_a_cell_shares_what_it_composed():
    spec = cell_specs(experiments.load("table2"), "lite")[1][0]
    assert resolve(spec).spec.config is spec.config


def test_a_method_that_is_a_file_is_read_again_in_the_next_process(tmp_path):
    overrides = ("task=uuid", "scale=smoke", "method=peft", f"method.config={tmp_path}/adapter_config.json")
    configs = []
    for r in (4, 8):
        (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "VERA", "r": {r}}}')
        cached_composition._composed.cache_clear()  # of this process
        configs.append(cached_composition.compose_cached(overrides))
    assert [config.method.adapter.settings["r"] for config in configs] == [4, 8]
    assert configs[1] == compose(overrides)


def test_what_is_kept_does_not_grow_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_composition, "MOST_KEPT", 3)
    monkeypatch.setattr(cached_composition, "FILES_KEPT", 2)
    for name in "abc":
        cached_composition._write(tmp_path / f"{name}.json", {str(n): n for n in range(5)}, before=4)
        os.utime(tmp_path / f"{name}.json", times=(ord(name), ord(name)))
    cached_composition._write(tmp_path / "d.json", {"0": 0}, before=1)
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "c.json"}, "nothing new was composed for d"
    assert json.loads((tmp_path / "c.json").read_text()) == {"2": 2, "3": 3, "4": 4}, "the newest"
