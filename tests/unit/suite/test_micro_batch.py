"""The micro batch that a configuration leaves open: the plan's, halved each time that it did not fit, to the same result."""

import json
import sys
from itertools import pairwise

import pytest
from made_up import write

from mora.config import ConfigError, source
from mora.config.cached_composition import compose_cached as compose
from mora.config.run_id import result_path, run_id
from mora.planner import gpus as known
from mora.suite import gpus, launch, micro_batch, preflight

GPU1 = ["task=metamath", "method=mora", "r=8", "hardware=gpu1"]
GIB = 2**30


@pytest.mark.parametrize(("memory", "micro"), [(79.1, 64), (39.4, 32), (23.5, 8)])
def test_the_plans_largest_that_fits_is_taken(memory, micro, monkeypatch):
    monkeypatch.setattr(micro_batch, "memory", lambda: memory * GIB)
    fitted = micro_batch.fitted(compose(GPU1))
    assert fitted.hardware.micro_batch_size <= micro
    assert 128 % fitted.hardware.micro_batch_size == 0
    assert run_id(fitted) == run_id(compose(GPU1))


def test_what_is_set_or_on_a_cpu_stays(monkeypatch):
    monkeypatch.setattr(micro_batch, "memory", lambda: 10 * GIB)
    for more in ("hardware.micro_batch_size=64", "hardware.micro_batch_tokens=512"):
        config = compose([*GPU1, more])
        assert micro_batch.fitted(config) == config
    cpu = compose([*GPU1[:-1], "hardware=cpu"])
    assert micro_batch.fitted(cpu) == cpu


def test_halving_keeps_to_divisors_and_ends_at_one():
    config, sizes = compose([*GPU1, "task.train.global_batch_size=60"]), []
    while (config := micro_batch.halved(config)) is not None:
        sizes.append(config.micro_batch_size)
    assert sizes == [30, 15, 6, 3, 1]


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """In place of a worker: runs out of memory until its micro batch is 2, then writes the result."""
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])
    write(config, {"value_nll": 1.0})
    result = tmp_path / "result.json"
    result_path(config).rename(result)
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys, pathlib, shutil, yaml\n"
        "folder = pathlib.Path(sys.argv[-1])\n"
        "hardware = yaml.safe_load((folder / 'config.yaml').read_text())['hardware']\n"
        "micro = hardware['micro_batch_size'] or 16\n"
        "open(folder / 'tried', 'a').write(f'{micro} ')\n"
        "if micro > 2:\n"
        "    (folder / 'out_of_memory.json').write_text(json.dumps({'micro_batch_size': micro}))\n"
        "    sys.exit(1)\n"
        f"shutil.copy({str(result)!r}, {str(result_path(config))!r})\n"
    )
    monkeypatch.setattr(launch, "_starter", lambda config: [sys.executable, str(script)])
    return config


def test_a_run_that_does_not_fit_is_started_again_with_half(worker, capfd):
    assert launch.launch(worker) == 0
    tried = [int(n) for n in (launch.run_folder(worker) / "tried").read_text().split()]
    assert tried[-1] == 2
    assert all(later <= earlier / 2 for earlier, later in pairwise(tried))
    assert f"{run_id(worker)}: out of GPU memory with 4 sequences per pass; retrying with 2" in capfd.readouterr().err


def test_a_micro_batch_that_was_asked_for_is_not_changed(worker):
    hardware = worker.hardware.model_copy(update={"micro_batch_size": 4})
    assert launch.launch(worker.model_copy(update={"hardware": hardware})) == 1
    assert (launch.run_folder(worker) / "tried").read_text() == "4 "


def test_the_worker_says_that_it_ran_out_of_memory(tmp_path, monkeypatch, capsys):
    import torch

    from mora.train import __main__ as train

    def out_of_memory(folder):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    config = compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])
    launch.write_config(config, tmp_path / "config.yaml")
    monkeypatch.setattr(train, "run", out_of_memory)
    monkeypatch.setattr(sys, "argv", ["mora.train", str(tmp_path)])
    assert train.main() == 1
    assert "out of GPU memory" in capsys.readouterr().err
    assert json.loads((tmp_path / micro_batch.MARK).read_text()) == {"micro_batch_size": config.micro_batch_size}
    assert micro_batch.ran_out_of_memory(tmp_path)
    assert not micro_batch.ran_out_of_memory(tmp_path), "said once"


def test_memory_is_that_of_the_smallest_gpu(monkeypatch):
    answers = {"memory.total": [["81559"], ["24564"]], "index": [["0"], ["1"]]}
    monkeypatch.setattr(gpus, "query", answers.__getitem__)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus.memory() == 24564 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.memory() is None


@pytest.mark.parametrize(("text", "gib"), [("h200", 139.8), ("A100-40", 39.4), ("48,362", 48.0), ("24.5,71", 24.5)])
def test_gpus_by_name_or_by_hand(text, gib):
    assert known.gpu(text).memory == pytest.approx(gib * GIB)


@pytest.mark.parametrize("text", ["h300", "48", "48,x", "0,10", "-1,5"])
def test_an_unknown_gpu_is_refused_with_those_that_are_known(text):
    with pytest.raises(ConfigError, match=r"expected h100, a100-40, .* GiB and bf16 TFLOP/s"):
        known.gpu(text)


def test_hardware_that_is_not_here_is_no_reason_to_halve(worker, monkeypatch):
    monkeypatch.setattr(preflight, "visible", lambda: [])
    hardware = worker.hardware.model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match="there is no GPU here"):
        launch.launch(worker.model_copy(update={"hardware": hardware}))


def test_a_long_run_on_a_cpu_is_said_before_it_begins(monkeypatch):
    monkeypatch.setattr(micro_batch, "visible", lambda: [])
    lite = compose(["task=uuid", "method=mora", "r=8", "scale=lite"])
    said = micro_batch.too_slow(lite)
    assert said.startswith("scale lite is meant for a GPU, and this machine has none: about ")
    assert micro_batch.too_slow(compose(["task=uuid", "method=mora", "r=8", "scale=smoke"])) is None
    monkeypatch.setattr(micro_batch, "visible", lambda: ["0"])
    assert micro_batch.too_slow(lite) is None
