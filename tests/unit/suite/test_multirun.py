"""The lines that end a multirun."""

from types import SimpleNamespace

import pytest

from mora.results import STORE, Metric
from mora.suite import multirun


def result(status="done", **last):
    metrics = {step: {name: Metric(value=value) for name, value in last.items()} for step in ((5, 10) if last else ())}
    return SimpleNamespace(status=status, metrics=metrics)


@pytest.fixture
def said(monkeypatch):
    def said(results, models=()):
        models = {name: SimpleNamespace(name=model) for name, model in zip(results, models, strict=False)}
        same = SimpleNamespace(name="same")
        configs = {
            name: SimpleNamespace(name=name, task=same, model=models.get(name, same), scale=same) for name in results
        }
        monkeypatch.setattr(multirun, "result_path", lambda config: config.name)
        monkeypatch.setattr(STORE, "at", results.get)
        return multirun.summary([(["task=uuid", *name.split()], config) for name, config in configs.items()])

    return said


def test_every_run_is_told_with_the_settings_that_differ_and_the_lowest_is_marked(said):
    lines = said(
        {
            "lr=1e-3": result(validation_loss=0.5489, **{"gsm8k.score": 0.57, "gsm8k.answered": 0.99}),
            "lr=3e-3 seed=1": result(validation_loss=0.5674),
            "lr=1e-2": result("diverged", validation_loss=0.1),
            "lr=3e-2": None,
            "lr=1e-1": result(),
        }
    ).splitlines()
    assert lines == [
        "5 runs:",
        "  lr=1e-3         validation_loss 0.5489, gsm8k.score 0.57  (lowest)",
        "  lr=3e-3 seed=1  validation_loss 0.5674",
        "  lr=1e-2         diverged",
        "  lr=3e-2         no result",
        "  lr=1e-1         no measurement",
    ]


def test_memory_is_chosen_by_the_likelihood_of_the_values(said):
    assert said({"lr=1e-3": result(value_nll=6.307, value_token_acc=0.9), "lr=3e-3": result(value_nll=27.25)}) == (
        "2 runs:\n  lr=1e-3  value_nll 6.307  (lowest)\n  lr=3e-3  value_nll 27.25"
    )


def test_losses_that_do_not_compare_have_no_lowest(said):
    two = {"model=a": result(validation_loss=0.5), "model=b": result(validation_loss=0.6)}
    assert "lowest" in said(two)
    assert "lowest" not in said(two, models=("a", "b"))
    assert "lowest" not in said({"seed=0": result(validation_loss=0.5), "seed=1": result(validation_loss=0.6)})
    assert "lowest" not in said({"x=0": result(validation_loss=0.5), "x=1": result(value_nll=6.0)})
