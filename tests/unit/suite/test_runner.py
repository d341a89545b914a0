"""Suites side by side: a run is started once, by whoever comes first, and nothing waits that need not."""

import fcntl
import threading
import time

import pytest
from all_cells import cells_of
from made_up import write

from mora.config import ConfigError, run_id, source
from mora.io import IN_USE
from mora.suite import experiments, figures, launch, runner
from mora.suite.cell_specs import cell_specs
from mora.suite.cells import resolve
from mora.suite.gpus import GpuSlots


def test_a_run_of_another_process_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path))
    spec = cells_of("table2", "smoke")[0]
    config = resolve(spec).final_runs[0]
    assert not runner.held(config)
    folder = launch.run_folder(config)
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runner.held(config)
        monkeypatch.setattr(runner, "launch", lambda *a, **k: pytest.fail("started a run that another process holds"))
        assert runner._run(config, GpuSlots(1, [])) == 0
    assert not runner.held(config)


def test_spectra_are_measured_once_and_of_finished_runs_alone(tmp_path, monkeypatch, nothing_measured):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    specs = cells_of("figure5", "smoke")
    configs = [resolve(spec).final_runs[0] for spec in specs]
    for config, status in zip(configs, ("done", "done", "diverged"), strict=False):  # the last was not run
        write(config, {}, status=status)
    for config in configs:
        launch.run_folder(config).mkdir(parents=True)
        (launch.run_folder(config) / "config.yaml").touch()
    figures.spectrum_path(configs[0]).parent.mkdir()
    figures.spectrum_path(configs[0]).touch()
    asked = []
    monkeypatch.setattr(runner.subprocess, "run", lambda command, **_: asked.append(command[4]))
    runner.measure_spectra(specs)
    assert asked == [str(launch.run_folder(configs[1]))]


def test_two_suites_on_one_folder_share_the_runs(tmp_path, monkeypatch):
    """One run is held by another process, which ends it later: this suite does the others, waits, and starts it never."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    specs = [row[0] for row in cell_specs(experiments.load("table2"), "smoke")]
    elsewhere, *ours = (resolve(spec).final_runs[0] for spec in specs)
    started = []

    def fake(config, output, env):
        started.append(run_id(config))
        write(config, {})
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    folder = launch.run_folder(elsewhere)
    folder.mkdir(parents=True)
    lock = open(folder / ".lock", "w")  # noqa: SIM115, the thread below closes it
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end_elsewhere():
        while len(started) < len(ours):
            time.sleep(0.01)
        write(elsewhere, {})
        lock.close()

    other = threading.Thread(target=end_elsewhere)
    other.start()
    assert runner.complete(specs, jobs=2) == []
    other.join()
    assert sorted(started) == sorted(run_id(config) for config in ours)


def test_final_runs_do_not_wait_for_the_searches_of_other_cells(tmp_path, monkeypatch):
    """The last search of the second cell lasts until a final run of the first is done."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    specs = [row[0] for row in cell_specs(experiments.load("table2"), "lite") if row[0].search_runs][:2]
    slow, first_final = run_id(specs[1].search_runs[-1]), threading.Event()
    searches = {run_id(c) for spec in specs for c in spec.search_runs}
    done = []

    def fake(config, output, env):
        if run_id(config) == slow:
            assert first_final.wait(20)
        write(config, {specs[0].experiment.selection: 1.0})
        done.append(run_id(config))
        if run_id(config) not in searches:
            first_final.set()
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    assert runner.complete(specs, jobs=2) == []
    assert sorted(done) == sorted({run_id(c) for spec in specs for c in (*spec.search_runs, *resolve(spec).final_runs)})
    assert done.index(slow) > min(done.index(run_id(c)) for c in resolve(specs[0]).final_runs)


def test_a_run_that_lost_a_race_for_its_folder_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    config = resolve(cells_of("table2", "smoke")[0]).final_runs[0]

    def lost(config, output, env):
        output.write(f"mora.train: {launch.run_folder(config)} {IN_USE} (pid 1): wait for it\n")
        return 2

    monkeypatch.setattr(runner, "launch", lost)
    assert runner._run(config, GpuSlots(1, [])) == 0
    monkeypatch.setattr(runner, "launch", lambda config, output, env: 1)
    (launch.run_folder(config) / "output.txt").unlink()
    assert runner._run(config, GpuSlots(1, [])) == 1


def test_a_refused_run_leaves_the_other_runs_of_its_table_going(tmp_path, monkeypatch, capfd):
    """Full fine-tuning, say, for whose checkpoints the disk has no room."""
    monkeypatch.setenv("MORA_OUTPUT_DIR", str(tmp_path / "outputs"))
    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "interrupt_on_sigterm", lambda: None)
    specs = [row[0] for row in cell_specs(experiments.load("table2"), "smoke")]
    refused = run_id(resolve(specs[0]).needed[0])
    done = []

    def fake(config, output, env):
        if run_id(config) == refused:
            raise ConfigError("its disk has no room")
        write(config, {specs[0].experiment.selection: 1.0})
        done.append(run_id(config))
        return 0

    monkeypatch.setattr(runner, "launch", fake)
    assert runner.complete(specs, jobs=1) == [refused]
    assert {run_id(c) for spec in specs[1:] for c in resolve(spec).final_runs} <= {*done}
    assert f"{refused}: refused: its disk has no room" in capfd.readouterr().err
