"""What a run says when it begins and when it has ended."""

import json

import torch
from tiny_runs import tiny_config

from mora.config.run_id import result_path
from mora.methods import prepare
from mora.models.load import load_model
from mora.train import run_messages


def test_the_beginning_names_what_decides_the_result_and_where_it_will_be(tmp_path):
    config = tiny_config("mora", "hardware.micro_batch_size=4")
    model = prepare(load_model(config.model, "fp32")[0], config)
    said = run_messages.beginning(config, torch.device("cpu"), model, tmp_path).splitlines()
    size, steps = config.task.train.global_batch_size, config.last_step
    assert said == [
        f"on cpu, fp32: tiny, r={config.r}",
        f"{size} sequences per step: 4 per pass, {size // 4} passes, 1 ranks; lr 0.01; {steps} steps, from the beginning",
        "operator: sharing",
        f"the result will be in {result_path(config)}",
    ]


def test_the_end_names_scores_errors_time_and_what_to_do_next(tmp_path):
    rows = [
        {"step": 3, "loss": 1.0},
        {"step": 3, "uuid_char_acc": 0.5, "uuid_char_acc_stderr": 0.01, "uuid.documents": 8.0, "value_nll": 2.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "adapter").mkdir()
    assert run_messages.ending(tiny_config("mora"), tmp_path, 61.4).splitlines() == [
        "uuid_char_acc 0.5000 +- 0.0100, value_nll 2.0000; 61 s",
        f"saved: {tmp_path}/adapter",
        f"next: mora generate {tmp_path}/adapter PROMPT, or mora evaluate {tmp_path}/adapter --task TASK",
    ]
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    assert "next:" not in run_messages.ending(tiny_config("mora"), tmp_path, 61.4)
    (tmp_path / "model").mkdir()
    assert f"next: mora generate {tmp_path}/model PROMPT" in run_messages.ending(tiny_config("mora"), tmp_path, 61.4)
