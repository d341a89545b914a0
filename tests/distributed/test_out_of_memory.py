"""A run that its GPU cannot hold goes on with half the sequences per pass, to the result of one that began with these."""

from pathlib import Path

import forked
import out_of_memory
import pytest
from tiny_runs import LAUNCHED, TWELVE_STEPS

from mora.config import compose, run_id
from mora.config.run_id import log_path, result_path
from mora.suite import launch
from mora.train import log

LIMITED = Path(out_of_memory.__file__)
RUN = [*TWELVE_STEPS, "method=mora", "r=4", "task.train.epochs=6", "task.evaluation.tasks=[]"]


def run_of(tmp_path, *overrides):
    return compose([*RUN, f"scale.results_dir={tmp_path}/results", *overrides])


def curve(config):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in log.read(log_path(config)) if "loss" in row]


def limited(monkeypatch, tmp_path, limit, from_pass, launched=0):
    """From now on workers run out of memory above `limit` sequences per pass. All but the first `launched` are forks."""
    starter, work, to_launch = launch._starter, launch._work, iter(range(launched))
    own = LAUNCHED | {"LIMIT": str(limit), "FROM": str(from_pass), "MORA_OUTPUT_DIR": str(tmp_path / "outputs")}
    for name, value in own.items():
        monkeypatch.setenv(name, value)

    def launched_or_forked(config, folder, *how):
        if next(to_launch, None) is not None:
            return work(config, folder, *how)
        forks = forked.fork(folder, own, config.hardware.world_size, out_of_memory.limit)
        return forked.first_error(forked.to_their_end(forks))

    monkeypatch.setattr(launch, "_starter", lambda config: [*starter(config), str(LIMITED)])
    monkeypatch.setattr(launch, "_work", launched_or_forked)


def not_limited(tmp_path, config):
    """The curve of that run."""
    codes, output = forked.train(config, tmp_path / "outputs")
    assert not any(codes), output
    return curve(config)


def test_two_ranks_go_on_with_half_to_the_same_result(tmp_path, monkeypatch, capfd):
    """Under ZeRO-1. One rank has run out, in its first pass; torchrun ends the other."""
    ranks = ["hardware=cpu2", "hardware.parallel=zero1"]
    given = run_of(tmp_path / "given", *ranks, "hardware.micro_batch_size=2")
    expected = not_limited(tmp_path / "given", given)
    limited(monkeypatch, tmp_path, 2, from_pass=1, launched=1)
    config = run_of(tmp_path, *ranks)
    assert launch.launch(config) == 0
    said = capfd.readouterr().err
    assert "out of GPU memory with hardware.micro_batch_size=4; halve it: hardware.micro_batch_size=2" in said
    assert f"{run_id(config)}: out of GPU memory with 4 sequences per pass; retrying with 2" in said
    assert run_id(config) == run_id(given)
    assert len(expected) == 6
    assert curve(config) == expected


def test_one_process_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch, capfd):
    """It runs out in a later step, as of a longer sequence. Without dropout, whose draw depends on the size of a pass."""
    alone = ["hardware=cpu", "method.adapter.dropout=0"]
    expected = not_limited(tmp_path / "whole", run_of(tmp_path / "whole", *alone))
    limited(monkeypatch, tmp_path, 4, from_pass=6)
    config = run_of(tmp_path, *alone)
    assert launch.launch(config) == 0
    assert (
        "out of GPU memory with 8 sequences per pass; retrying with 4, from the last checkpoint"
        in capfd.readouterr().err
    )
    rows = curve(config)
    assert [step for step, *_ in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:4] == expected[:4], "kept from before"
    assert rows[4:] != expected[4:], "of passes of another size"
    for one, other in zip(rows, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert result_path(config).is_file()
