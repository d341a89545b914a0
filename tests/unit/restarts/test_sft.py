"""RestartCallback in TRL's SFTTrainer."""

from __future__ import annotations

import pytest
from trainer_runs import EVERY, STEPS, WARMUP, Watch, assert_as_the_suite, of_the_suite, rows, run_config, sft_arguments

from mora import MoraConfig, RestartCallback
from mora.models.load import load_model

trl = pytest.importorskip("trl", reason="needs trl: pip install '.[dev]'")


def test_every_step_leaves_the_weights_that_the_suites_loop_leaves(tmp_path):
    from datasets import Dataset

    config = run_config("remora")
    model, tokenizer = load_model(config.model, "fp32")
    adapter = config.method.adapter
    restart, watch = RestartCallback(EVERY, WARMUP), Watch()
    trainer = trl.SFTTrainer(
        model=model,
        args=sft_arguments(trl, tmp_path, config),
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer,
        peft_config=MoraConfig(
            r=config.r, target_modules=list(adapter.target_modules), operator=adapter.operator, task_type="CAUSAL_LM"
        ),
        callbacks=[restart, watch],
    )
    trainer.train()
    assert len(watch.steps) == STEPS
    assert_as_the_suite(watch.steps, of_the_suite("remora"))
    assert [facts["restart"] for facts in restart.history] == [1, 2, 3]
