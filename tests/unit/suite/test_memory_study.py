"""The memory study: whose runs are its cells, when a value counts as known, which ratio is a bound."""

import csv
import itertools
from types import SimpleNamespace

import pytest
from made_up import write
from matplotlib import pyplot as plt

from mora.config import run_id, source
from mora.config.cached_composition import compose_cached as compose
from mora.results import typed
from mora.suite import experiments, memory_study
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve, resolve_all
from mora.suite.memory_study import MemoryRun

EXPERIMENT = experiments.load("memory")
SMALL = ["task.data.pairs=150", "task.train.global_batch_size=15"]
LARGE = ["task.data.pairs=6500", "task.train.global_batch_size=650"]
DECOUPLE = "method.adapter.operator=decouple"


def rows():
    return resolve_all(cell_specs(EXPERIMENT, "lite"))


def cells(name="memory"):
    return [spec for row in cell_specs(experiments.load(name), "lite") for spec in row if spec.exists]


def memory_run(known):
    """Of token accuracies, 50 steps apart."""
    config = compose(["task=uuid", "method=lora", "r=1", "scale=lite"])
    rows = {50 * (i + 1): {"value_token_acc": share, "value_nll": 1.0} for i, share in enumerate(known)}
    return MemoryRun(config, {step: typed(row) for step, row in rows.items()})


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["method=lora", "r=1", *SMALL], "1e-3 3e-3 1e-2 3e-2"),
        (["method=mora", "r=1", *SMALL], "3e-4 1e-3 3e-3 1e-2"),
        (["method=mora", "r=1", DECOUPLE, *SMALL], "1e-3 3e-3 1e-2 3e-2"),
        (["method=lora", "r=8", *LARGE], "3e-3 1e-2"),
        (["method=mora", "r=8", *LARGE], "1e-3 3e-3"),
    ],
)
def test_the_searches_are_those_of_the_campaign(overrides, rates):
    asked = ["task=uuid", "scale=lite", *overrides, "task.train.stop_step=300"]
    wanted = [run_id(compose([*asked, f"lr={rate}"])) for rate in rates.split()]
    assert wanted in [[run_id(config) for config in spec.search_runs] for spec in cells()]


@pytest.mark.parametrize(("method", "rate"), [("lora", "1e-2"), ("mora", "3e-3")])
def test_three_times_the_steps_need_no_search(method, rate):
    config = compose(["task=uuid", "scale=lite", "task.train.epochs=300", f"method={method}", "r=1", f"lr={rate}"])
    (cell,) = [spec for spec in cells() if spec.row.method == method and "3000 steps" in spec.column.name]
    assert cell.search_runs == []
    assert run_id(resolve(cell).final_runs[0]) == run_id(config)


def test_the_runs_of_table_2_are_cells():
    here = {run_id(config) for spec in cells() for config in resolve(spec).needed}
    for spec in cells("table2"):
        assert {run_id(config) for config in resolve(spec).needed} <= here, spec.label


def test_loads_are_from_a_thirtieth_to_half_a_bit():
    bits = sorted(arm.bits for arm in memory_study.arms(rows()) if arm.spec.row.r == 1)
    assert bits[0] < 0.035
    assert 0.49 < bits[-1] < 0.55
    frozen = [arm for arm in memory_study.arms(rows()) if arm.kind == "LoRA, A frozen"]
    assert frozen
    for arm in frozen:
        assert memory_study.partner(arm, memory_study.arms(rows())).trainable == pytest.approx(arm.trainable, rel=0.02)


def test_steps_lie_between_the_measurements_and_are_none_where_the_run_ended_first():
    assert memory_run([0.5, 0.985, 0.995, 1.0]).steps == pytest.approx(125)
    assert memory_run([0.99]).steps == memory_run([1.0]).steps == 50, "nothing to interpolate from"
    assert memory_run([0.5, 0.98]).steps is None
    assert memory_run([0.5, 0.98]).shown == "> 1000"
    assert MemoryRun(memory_run([]).config, {}).mean_nats == float("inf")


def test_a_ratio_is_a_bound_where_one_of_the_two_did_not_get_there():
    fast, slow, never = memory_run([0.99]), memory_run([0, 0, 0, 0.99]), memory_run([0.5])
    assert memory_study.ratio(slow, fast) == (pytest.approx(4.0), 0)
    assert memory_study.ratio(never, fast) == (pytest.approx(20.0), 1)
    assert memory_study.ratio(fast, never) == (pytest.approx(0.05), -1)
    assert memory_study.ratio(never, never) is None


def test_the_figure_pairs_seeds_and_names_what_neither_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    assert memory_study.render("memory", EXPERIMENT, rows(), "lite", tmp_path / "out") is None
    chosen = [spec for spec in cells() if spec.row.r == 8 and spec.column.name == "1000 pairs"]
    for spec in chosen:
        for config in spec.search_runs:
            write(config, {"value_nll": abs(config.lr - 3e-3)})
        for config in resolve(spec).final_runs:
            share = 0.9 if config.seed == 2 else 0.995
            write(config, {"value_token_acc": share, "value_nll": 2.0, "uuid_char_acc": 0.75}, steps=(500,))
    path = memory_study.render("memory", EXPERIMENT, rows(), "lite", tmp_path / "out")
    first = path.read_bytes()
    text = path.with_suffix(".md").read_text()
    assert "Reached by neither, so not drawn: MoRA r=8 (the paper's 64) at 1000 pairs, seed 2; MoRA r=8" in text
    mora = (
        "| 1000 pairs | MoRA r=8 (the paper's 64) | smollm2_135m | 96 | 2,415,690 | 0.051 | 3e-3 | 500, 500, > 1000 |"
    )
    assert mora in text
    assert "| 6500 pairs | LoRA r=8 (the paper's 64) | smollm2_135m | - | 2,442,240 | 0.325 | - | not run |" in text
    assert "LoRA r=2 (the paper's 16), freeze_a=true" in text
    with open(path.with_suffix(".csv")) as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert {line["run"] for line in lines} == {run_id(c) for spec in chosen for c in resolve(spec).final_runs}
    assert [line["steps_to_99"] for line in lines if line["seed"] == "2"] == [""] * 4
    memory_study.render("memory", EXPERIMENT, rows(), "lite", tmp_path / "out")
    assert path.read_bytes() == first


def test_operators_stand_beside_one_another_and_the_axes_say_so():
    _, ax = plt.subplots()
    lora = SimpleNamespace(bits=0.1)
    places = [memory_study._dot(ax, lora, kind, (1.2, 0), "k").x for kind in ("sharing", "decouple", "rotation")]
    assert places[0] == 0.1
    assert places == sorted(set(places))
    memory_study._scales(ax)
    assert "sharing stands at its value, others just right of it" in ax.get_xlabel()
    assert memory_study.PLACE in memory_study.CAPTION


def test_no_rank_is_written_over_another():
    _, ax = plt.subplots()
    ax.set(xscale="log", yscale="log", xlim=(0.01, 1), ylim=(0.5, 2))
    near = {(f"r={r}", "1000 pairs"): [memory_study.Dot(0.1 * 1.001**r, 1.0)] for r in (1, 2, 8)}
    memory_study._name(ax, near | {("r=1", "3000 steps"): [memory_study.Dot(0.1, 1.01), memory_study.Dot(0.1, 0.6)]})
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == ["r=1", "r=2", "r=8", "r=1"], "one a group, the lowest first"
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
