"""A model or method whose cost cannot be counted has a line of its own in a plan and `unknown` in a table, no traceback."""

import pytest

from mora.config import ConfigError, source
from mora.config.cached_composition import compose_cached as compose
from mora.suite import experiments, overrides, plan, tables
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    own = overrides.applied(experiments.load("table1"), ["model=custom", "model.path=some/model"])
    return next(spec for row in cell_specs(own, "paper") for spec in row if spec.row.method == "mora")


def test_a_plan_names_the_run_and_the_reason(spec):
    text = plan.text([spec], "gpu8")
    assert " cost unknown: model.name='model': its shape is unknown without its weights" in text
    assert "; missing:" in text


def test_a_table_says_unknown(spec):
    assert tables.trainable([resolve(spec)]) == "unknown"


def test_a_method_without_a_formula_is_refused_by_name(monkeypatch):
    from types import SimpleNamespace

    from mora.planner import counts

    config = compose(["task=metamath", "method=mora", "r=8"])
    unknown = SimpleNamespace(kind="vera", target_modules=["q_proj"])
    other = config.method.model_copy(update={"name": "vera", "adapter": unknown})
    with pytest.raises(ConfigError, match="the cost of an adapter of method vera is unknown"):
        counts.trainable(config.model_copy(update={"method": other}))


def test_any_method_of_pefts_stands_in_a_plan_and_a_table_by_a_row_alone(tmp_path, monkeypatch):
    (tmp_path / "vera.json").write_text('{"peft_type": "VERA", "r": 8}')
    row = f"{{method: peft, settings: ['method.config={tmp_path}/vera.json']}}"
    (tmp_path / "own.yaml").write_text(
        "title: own\nkind: table\ncolumns: [{name: score, task: uuid, metric: uuid_char_acc}]\n"
        f"scales: {{smoke: {{seeds: [0], rows: [{row}]}}}}\n"
    )
    monkeypatch.setattr(experiments, "FOLDER", tmp_path)
    monkeypatch.setattr(source, "ROOT", tmp_path)
    ((spec,),) = cell_specs(experiments.load("own"), "smoke")
    assert " cost unknown: the cost of an adapter of method peft is unknown" in plan.text([spec], "cpu")
    assert tables.trainable([resolve(spec)]) == "unknown"
    assert "uuid-peft_vera-" in plan.text([spec], "cpu")
    assert spec.label == "peft_vera"
