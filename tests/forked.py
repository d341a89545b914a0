"""Workers of runs that tests configure, forked from a server that has imported the heavy packages."""

from mora.config import run_id
from mora.faults import forked
from mora.suite.launch import write_config

context, fork = forked.context, forked.start


def start(config, outputs, **env):
    """`python -m mora.train RUN_DIR` on each rank, in a folder under `outputs` as run.py makes it. Processes and folder."""
    folder = outputs / run_id(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(config, folder / "config.yaml")
    (folder / "output.txt").unlink(missing_ok=True)
    return forked.start(folder, env, config.hardware.world_size), folder


def train(config, outputs, **env):
    """The same, to its end. Exit codes and output."""
    processes, folder = start(config, outputs, **env)
    return to_their_end(processes), (folder / "output.txt").read_text()


def to_their_end(processes, left_s=lambda: 120):
    """Their exit codes."""
    for process in processes:
        process.join(timeout=left_s())
        assert process.exitcode is not None, f"still running: {process}"
    return [process.exitcode for process in processes]


def launch(config, output, env, folder, left_s):
    """In place of `mora.suite.launch.launch`, for runs that end in time and whose output is `output.txt` in `folder`."""
    write_config(config, folder / "config.yaml")
    return first_error(to_their_end(forked.start(folder, env, config.hardware.world_size), left_s))


def first_error(codes):
    """The first exit code that is none of success; 0 if all are."""
    return next(filter(None, codes), 0)
