"""What is shown of a run on its way."""

import io
import sys

from tiny_runs import tiny_config

from mora.train import progress

STEPS = ["task.train.epochs=null", "task.train.max_steps=300"]
EVALUATIONS = ["task.evaluation.at_steps=[120,300]", "task.evaluation.loss_every_steps=50"]
RESTARTS = ["method.restart.every_steps=75", "method.restart.warmup_steps=5"]


def row(step):
    return {"step": step, "loss": 2.0, "lr": 1e-3}


def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress(tiny_config("mora", *STEPS, *EVALUATIONS), start=0, active=True)
    for step in range(1, 9):
        now[0] += 20.0
        shown.say(row(step), 27694.6)
    assert capsys.readouterr().out.splitlines() == [
        "step 3/300: loss 2.0000, lr 1.00e-03, tokens/s 27,695, evaluation at 50, 1:39:00 left",
        "step 6/300: loss 2.0000, lr 1.00e-03, tokens/s 27,695, evaluation at 50, 1:38:00 left",
    ]


def test_a_terminal_shows_a_bar_with_the_same_and_no_lines(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = progress.Progress(tiny_config("remora", *STEPS, *EVALUATIONS, *RESTARTS), start=98, active=True)
    for step in shown:
        shown.say(row(step + 1), 1000.0)
        if step == 99:
            break
    assert "98/300 [" in terminal.getvalue()
    assert "loss=2.0000, lr=1.00e-03, tokens/s=1,000, restarts=1 of 3, evaluation at=120" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_other_ranks_show_nothing(capsys):
    shown = progress.Progress(tiny_config("mora", *STEPS), start=0, active=False)
    assert next(iter(shown)) == 0
    shown.say(row(1), 1.0)
    assert capsys.readouterr() == ("", "")


def test_the_restarts_and_the_next_evaluation():
    config = tiny_config("remora", *STEPS, *EVALUATIONS, *RESTARTS)
    shown = {step: progress.facts(config, row(step), 1.0) for step in (74, 75, 100, 120, 299, 300)}
    assert [f["restarts"] for f in shown.values()] == ["0 of 3", "1 of 3", "1 of 3", "1 of 3", "3 of 3", "3 of 3"]
    assert [f.get("evaluation at") for f in shown.values()] == ["100", "100", "120", "150", "300", None]
