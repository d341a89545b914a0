"""The file of a queue: which runs a line stands for, and how a line that is none is named."""

import re

import pytest

from mora.config import ConfigError, run_id
from mora.suite import queue_file

SMOKE = "task=uuid scale=smoke method=lora r=8"


def test_an_experiments_hardware_words_go_to_every_run_and_change_none(tmp_path):
    words = "@experiment table1 smoke task=metamath method=lora"
    (tmp_path / "plain.txt").write_text(words)
    (tmp_path / "rows.txt").write_text(f"{words} hardware.micro_batch_tokens=4096 hardware.micro_batch_size=null")
    plain, rows = (queue_file.read(tmp_path / name) for name in ("plain.txt", "rows.txt"))
    assert [run_id(run.config) for run in rows] == [run_id(run.config) for run in plain]
    assert {run.config.hardware.micro_batch_tokens for run in rows} == {4096}


def test_an_experiments_claim_is_that_of_every_run(tmp_path):
    words = "@experiment table1 smoke task=metamath method=lora"
    (tmp_path / "plain.txt").write_text(words)
    (tmp_path / "claimed.txt").write_text(f"[18.5GiB] {words}")
    plain, claimed = (queue_file.read(tmp_path / name) for name in ("plain.txt", "claimed.txt"))
    assert claimed == [run._replace(claim_gib=18.5) for run in plain]


def test_a_line_that_is_no_run_is_named(tmp_path):
    file = tmp_path / "queue.txt"
    file.write_text(f"{SMOKE}\ntask=uuid method=lora r=zero\n")
    with pytest.raises(ConfigError, match=r"queue\.txt, line 2: .*r"):
        queue_file.read(file)
    file.write_text(f"[18 GB] {SMOKE}\n")
    with pytest.raises(ConfigError, match=r"line 1: \[18 GB\] .*: expected a claim such as \[30 GiB\]"):
        queue_file.read(file)


@pytest.mark.parametrize(
    ("name", "why"),
    [("none.txt", "No such file or directory"), (".", "Is a directory"), ("x" * 300, "File name too long")],
)
def test_a_file_that_cannot_be_read_is_told_with_what_was_expected(name, why, tmp_path):
    with pytest.raises(ConfigError, match=rf": {why}; expected a file with a run per line, such as `task=uuid"):
        queue_file.read(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            f"{SMOKE} hardware=gpu8 task.train.global_batch_size=16",
            "hardware=gpu8 has 8 processes: a run of the queue has one GPU; use hardware=gpu1 here or start it by run.py",
        ),
        ("@experiment table1 nope", "@experiment table1 nope: expected a scale after table1: paper, lite, mid, smoke"),
        ("[9 GiB] @experiment table1 smok", "@experiment table1 smok: .*; did you mean smoke?"),
        ("@experiment table1", "@experiment table1: expected a scale after table1: paper, "),
        ("@experiment", "@experiment: expected NAME SCALE after it, such as `@experiment table1 mid`"),
        ("@experiment tabel1 smoke", "there is no experiment 'tabel1'; there are .*; did you mean table1?"),
        (
            "@experiment table5 smoke",
            "@experiment table5 smoke: expected a scale after table5: none, for it has no runs",
        ),
        ("@wiat", "@wiat: expected `@wait` on a line of its own, or `@experiment NAME SCALE`; did you mean @wait?"),
        ("@wait here", "@wait: expected `@wait` on a line of its own, or `@experiment NAME SCALE`"),
    ],
)
def test_a_line_that_no_gpu_can_run_or_of_a_misspelt_word_is_named(line, why, tmp_path):
    file = tmp_path / "queue.txt"
    file.write_text(f"# first\n{line}\n")
    pattern = re.escape(why).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=rf"queue\.txt, line 2: {pattern}"):
        queue_file.read(file)
