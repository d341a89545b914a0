"""A table as one SLURM array job. Each task is a suite on a node's GPUs, and the tasks share the runs. Imports no torch."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mora.config import ConfigError
from mora.config.hardware_schema import Hardware
from mora.config.source import CONFIG_DIR
from mora.config.yaml_file import read_yaml
from mora.errors import MoraError

from .launch import ROOT

PREFIX = "hydra.launcher."  # begins those settings of --set that are options of the job, as for run.py
OTHER_NAMES = {"timeout_min": "time", "mem_gb": "mem", "name": "job-name", "signal_delay_s": "signal"}
FORMS = {"mem_gb": "{}G", "signal_delay_s": "TERM@{}"}


def in_job() -> bool:
    """Return whether this process belongs to a job, and so should do the runs rather than submit them."""
    return "SLURM_JOB_ID" in os.environ


def split(settings: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the settings of the runs, and the options of the job."""
    of_runs = [text for text in settings if not text.startswith(PREFIX)]
    job = [text.removeprefix(PREFIX).partition("=") for text in settings if text.startswith(PREFIX)]
    return of_runs, {key: value for key, _, value in job}


def script(command: Sequence[str], hardware: Hardware, tasks: int, options: dict[str, str], logs: Path) -> str:
    """Return the input of sbatch: `tasks` tasks of `hardware.nodes` nodes each that start Python with `command`.

    Raises:
        ConfigError: There are several tasks of several nodes. A node could not tell a run to join from another task's.
    """
    if tasks > 1 and hardware.nodes > 1:
        raise ConfigError(f"JOBS={tasks}, hardware.nodes={hardware.nodes}: expected JOBS=1 for runs of several nodes")
    launcher = read_yaml(CONFIG_DIR / "hydra" / "launcher" / "slurm.yaml")
    wanted = {
        "job-name": launcher["name"],
        "array": f"1-{tasks}",
        "nodes": str(hardware.nodes),
        "ntasks-per-node": "1",
        "gpus-per-node": str(hardware.processes),
        "cpus-per-task": str(launcher["cpus_per_task"]),
        "time": str(launcher["timeout_min"]),
        "signal": f"TERM@{launcher['signal_delay_s']}",
        "open-mode": "append",
        "output": str(logs / "%A_%a.out"),
    }
    options = dict(options)
    setup = yaml.safe_load(options.pop("setup", "[]"))  # a line, or a list of lines
    for key, value in options.items():
        name = OTHER_NAMES.get(key, key).replace("_", "-")
        wanted[name] = FORMS.get(key, "{}").format(value)
    lines = [f"#SBATCH --{name}={value}" for name, value in wanted.items()]
    run = f"srun --unbuffered {shlex.join([sys.executable, *command])}"
    begin = [f"cd {shlex.quote(str(ROOT))}", "export SUBMITIT_EXECUTOR=slurm"]  # for launch.rendezvous
    begin += [*launcher["setup"], *([setup] if isinstance(setup, str) else setup)]
    return "\n".join(["#!/bin/bash", *lines, "", *begin, run, ""])


def command(args: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """Return the Python arguments of a task: those of this suite, with one run at a time. `--force` has already acted."""
    words = ["-m", "mora.suite", *args.names, "--scale", args.scale, "--hardware", "slurm", "--jobs", "1"]
    words += ["--seeds", str(args.seeds)] if args.seeds else []
    words += ["--results", str(args.results.resolve())] if args.results else []
    for option, values in (("--only", args.only), ("--set", settings)):
        words += [option, *values] if values else []
    return words


def submit(text: str, logs: Path) -> str:
    """Submit the job and return its number. Raises ConfigError if there is no SLURM, MoraError if it refuses the job."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "hardware=slurm: there is no sbatch in PATH; start it on a SLURM cluster, or use hardware=gpu8"
        )
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "job.sh").write_text(text)
    answer = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MoraError(f"sbatch refused {logs / 'job.sh'}: {answer.stderr.strip()}")
    return answer.stdout.strip().split(";")[0]
