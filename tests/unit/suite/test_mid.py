"""Scale mid: every cell composes, ranks fit its model, grids and searches are equal, and its code runs on a tiny Qwen2."""

import itertools

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mora.config import provenance
from mora.config.cached_composition import compose_cached as compose
from mora.data.batches import Batch
from mora.families.mora import Mora
from mora.methods import prepare
from mora.models.shapes import shape_of
from mora.sizes import r_hat_for
from mora.suite import experiments
from mora.suite.cell_specs import cell_specs
from mora.train.engines import make_engine


def cells(name):
    return [spec for row in cell_specs(experiments.load(name), "mid") for spec in row if spec.exists]


MID = [spec for name in experiments.names() for spec in cells(name)]


def test_at_scale_mid_every_search_is_a_whole_run_of_a_third_with_grids_of_equal_size():
    assert {spec.experiment.title.split(":")[0] for spec in MID} == {
        "Table 1", "Table 2", "Table 4", "Table 6", "Table 7", "Figure 2", "Figure 3", "Merging", "Restarts"
    }  # fmt: skip
    for spec in MID:
        whole, searches = spec.config, spec.search_runs
        assert whole.model.name == "qwen25_coder_1b5"
        if not whole.method.trains or spec.row.rate_without_settings:
            continue
        rates = sorted({run.lr for run in searches})
        assert len(rates) == len(searches) == 4, spec.label
        assert [b / a for a, b in itertools.pairwise(rates)] == pytest.approx([3.16] * 3, rel=0.06)
        for run in searches:
            assert run.task.train.stop_step is None
            assert 3 * run.total_steps == pytest.approx(whole.total_steps, rel=0.01)
            assert not run.task.evaluation.tasks
            if whole.method.restart:
                assert run.method.restart == whole.method.restart, "the interval is not shortened"
                assert run.total_steps > whole.method.restart.every_steps, "so that a search sees a restart"
                assert whole.method.restart.warmup_steps <= 0.05 * whole.method.restart.every_steps


def test_at_scale_mid_no_square_is_clamped_and_no_input_is_ignored():
    for spec in MID:
        config = spec.config
        if not isinstance(config.method.adapter, Mora):
            continue
        assert config.method.adapter.overflow == "fold"
        for linear in shape_of(config.model).linears:
            r = config.model.rank_of(linear.name, config.r)
            assert r_hat_for(linear.in_features, linear.out_features, r, "floor") <= min(
                linear.in_features, linear.out_features
            )
        assert "ours: k, v and down" in provenance.of_run(config)["task.overflow"]


@pytest.mark.parametrize("task", ["uuid", "tulu2", "metamath", "biomed", "finance"])
@pytest.mark.parametrize("method", ["fft", "lora", "lora_plus", "relora", "asylora", "dora", "mora", "remora"])
def test_a_cell_of_scale_mid_runs_on_a_tiny_qwen2(task, method):
    """Its method and rank as at scale mid, on the model's structure: prepared and trained for a step."""
    rank = [] if method == "fft" else ["r=4"]
    config = compose([f"task={task}", f"method={method}", "scale=mid", *rank, "scale.precision=fp32", "hardware=cpu"])
    shape = {"vocab_size": 104, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1}
    torch.manual_seed(0)
    base = Qwen2ForCausalLM(Qwen2Config(**shape, num_attention_heads=4, num_key_value_heads=2))
    engine = make_engine(prepare(base, config), config)
    ids = torch.randint(3, 100, (2, 12))
    loss = engine.backward(Batch(ids, ids), 22)
    assert torch.isfinite(loss)
    assert engine.step(config.lr, 1.0) > 0
