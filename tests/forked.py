"""Workers of runs that tests configure, forked from a server that knows the tests' tiny models too."""

from mora.config import run_id
from mora.faults import forked
from mora.suite.launch import write_config

context = forked.context
context.set_forkserver_preload([*forked.PRELOADED, "tiny_runs"])


def start(config, outputs, kill_at=None):
    """`python -m mora.train RUN_DIR`, in a folder under `outputs` as run.py makes it. Returns process and folder."""
    folder = outputs / run_id(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.yaml")
    (folder / "output.txt").unlink(missing_ok=True)
    (process,) = forked.start(folder, {"MORA_KILL_AT": kill_at} if kill_at else {})
    return process, folder


def train(config, outputs, kill_at=None):
    """The same, to its end. Returns exit code and output."""
    process, folder = start(config, outputs, kill_at)
    process.join(timeout=120)
    assert process.exitcode is not None, f"still running: {folder}"
    return process.exitcode, (folder / "output.txt").read_text()
