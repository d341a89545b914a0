"""A suite on each of two nodes: both do the same runs in the same order, one after another."""

import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from made_up import write

from mora.config import source
from mora.config.run_id import run_id
from mora.suite import experiments, overrides, runner
from mora.suite.cell_specs import cell_specs

HERE = ["hardware=multinode", "hardware.device=cpu", "hardware.processes=1", "hardware.rendezvous=localhost:1"]


@pytest.fixture
def specs(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)  # which a thread may not
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    rows = cell_specs(overrides.applied(experiments.load("table2"), HERE), "smoke")
    return [spec for row in rows for spec in row if spec.row.method in ("lora", "mora")]


def test_they_meet_in_every_run_and_wait_for_its_result_before_the_next(monkeypatch, specs):
    """Of a run's nodes one writes the result, a little after the other has ended."""
    met, nodes, lock = [], threading.Barrier(2, timeout=30), threading.Lock()
    begun, at_once = Counter(), []  # launches of a run that have not ended; how many runs had some
    soon = SimpleNamespace(sleep=lambda _: time.sleep(0.01), monotonic=time.monotonic)
    monkeypatch.setattr(runner, "time", soon)

    def launch(config, output, env):
        with lock:
            met.append(run_id(config))
            begun[run_id(config)] += 1
            at_once.append(len(+begun))
        if nodes.wait() == 0:
            time.sleep(0.2)
            write(config, {"uuid_char_acc": 0.5}, steps=(100, 200, 300))
        with lock:
            begun[run_id(config)] -= 1
        return 0

    monkeypatch.setattr(runner, "launch", launch)
    failed = [None, None]

    def node(number):
        failed[number] = runner.complete(specs, jobs=2)

    threads = [threading.Thread(target=node, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [[], []]
    assert len(set(met)) > 2, "searches of two methods, and a final run"
    assert max(at_once) == 1, "no node begins a run before the one before it has its result"
    assert met[::2] == met[1::2], "each met the other in the run that it had begun"
    assert len(set(met)) == len(met) / 2, "no run is done twice"
