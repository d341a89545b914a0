"""What is said before a run trains that could not be scored, and what the merged model is measured by."""

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny_runs import tiny_config, tiny_engine

from mora.data.batches import Sample
from mora.errors import DataError
from mora.evaluate.metrics import facts
from mora.methods import prepare
from mora.models.load import load_model
from mora.train import scoring as module
from mora.train.engine import TorchEngine
from mora.train.scoring import Scoring


def test_a_set_that_scale_smoke_does_not_make_up_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path / "data"))  # which it would be told to set
    config = tiny_config("mora", "task.evaluation.tasks=[biomed_pubmedqa_local]")
    scoring = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path)
    with pytest.raises(DataError, match=r"made-up rows alone, never those of MORA_DATA_DIR: .*/ori_pqal\.json"):
        scoring.check()


@pytest.mark.parametrize("update", [0.0019, 0.5], ids=["rounded away", "kept"])
def test_losses_of_the_merged_model_are_measured_beside_its_scores(tmp_path, monkeypatch, update):
    """Base weights are 1 and -1, whose neighbours in bf16 are 0.004 and 0.008 away: less than half of that disappears."""
    config = tiny_config("lora", "scale.precision=bf16")
    model = prepare(load_model(config.model, "bf16")[0], config)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "_proj" in name:
            scale = update / 16 if "lora_B" in name else 1.0  # r is 4, alpha 16
            p.data.copy_(scale * torch.sign(torch.randn_like(p)))
    engine = TorchEngine(model, config.task.train, torch.bfloat16)
    ids = torch.randint(3, 100, (6, 12), generator=torch.Generator().manual_seed(0)).tolist()
    data = SimpleNamespace(pairs=[("k", "v")], samples=[Sample(row, row, n_prompt=5) for row in ids], validation=[])
    monkeypatch.setattr(module, "evaluate_model", lambda *_: ({"uuid": {"uuid_char_acc": 0.5}}, {}))
    measured = Scoring(config, data, None, 0, tmp_path)._scores(engine, config.final_step)
    assert set(measured) == {
        "value_nll", "value_token_acc", "merged_value_nll", "merged_value_token_acc", "uuid_char_acc"
    }  # fmt: skip
    with model.disable_adapter():
        untouched = Scoring(config, data, None, 0, tmp_path)._losses(engine)["value_nll"]
    assert (measured["merged_value_nll"] == untouched) == (update < 0.004)
    assert measured["value_nll"] != untouched
    assert facts("merged_value_nll") == facts("value_nll")


@pytest.mark.parametrize(
    ("loss", "after", "told"),
    [
        (8.0, 31.0, True),
        (8.0, 8.7, False),
        (0.0096, 0.04, False),
        (0.0096, 0.5, True),
        (8.0, float("nan"), True),
        (float("nan"), 1.0, False),
    ],
)
def test_a_loss_that_merging_raises_is_told(tmp_path, monkeypatch, capsys, loss, after, told):
    config = tiny_config("lora")
    measured = iter([{"value_nll": loss, "value_token_acc": 1.0}, {"value_nll": after, "value_token_acc": 0.5}])
    monkeypatch.setattr(Scoring, "_losses", lambda *_: next(measured))
    monkeypatch.setattr(module, "evaluate_model", lambda *_: ({}, {}))
    Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path)._scores(tiny_engine(config), config.final_step)
    said = (
        f"step {config.final_step}: value_nll is {loss:.4g} with the adapter, {after:.4g} after merging, which rounds"
    )
    assert capsys.readouterr().err.count(said) == told


def test_with_merge_false_the_model_with_its_adapter_is_scored(tmp_path, monkeypatch):
    config = tiny_config("lora", "task.evaluation.merge=false")
    seen = []

    def scored(model, *_):
        seen.append([layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer)])
        return {"uuid": {"uuid_char_acc": 0.5}}, {}

    monkeypatch.setattr(Scoring, "_losses", lambda *_: {"value_nll": 1.0})
    monkeypatch.setattr(module, "evaluate_model", scored)
    engine = tiny_engine(config)
    measured = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path)._scores(engine, config.final_step)
    assert measured == {"value_nll": 1.0, "uuid_char_acc": 0.5}
    assert set(seen[0]) == {False}


@pytest.mark.parametrize("method", ["fft", "none"])
def test_without_an_adapter_there_is_nothing_to_merge(tmp_path, monkeypatch, method):
    config = tiny_config(method)
    monkeypatch.setattr(Scoring, "_losses", lambda *_: {"value_nll": 1.0})
    monkeypatch.setattr(module, "evaluate_model", lambda *_: ({"uuid": {"uuid_char_acc": 0.5}}, {}))
    scoring = Scoring(config, SimpleNamespace(pairs=[]), None, 0, tmp_path)
    assert scoring._scores(tiny_engine(config), config.final_step) == {"value_nll": 1.0, "uuid_char_acc": 0.5}
