"""What `--hardware`, `--set` and `--results` change in the runs of an experiment, and what they may not change."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mora.config import ConfigError, compose, run_id
from mora.config.hydra_compose import parse_override

from .experiments import Column, Experiment

WHOLE_GROUPS = ("hardware", "tracker")  # the groups of configs/ that change no result


def given(args: argparse.Namespace, settings: Sequence[str]) -> list[str]:
    """Return the command line's settings as overrides of every run.

    For a plan the hardware is left out: `plan.text` puts the runs on it afterwards.
    """
    elsewhere = args.plan == "table"
    kept = [text for text in settings if not (elsewhere and text.startswith("hardware"))]
    hardware = [f"hardware={args.hardware}"] if args.hardware and not elsewhere else []
    where = [f"scale.results_dir={args.results.resolve() / 'runs'}"] if args.results else []
    return [*hardware, *kept, *where]


def check(settings: Sequence[str], results: Path | None) -> None:
    """Check the settings of a command line.

    Raises:
        ConfigError: A setting is not KEY=VALUE; or it changes the run ids, so that no table would find the runs, and
            `results` names no folder for them.
    """
    plain = ["task=metamath", "method=mora", "r=8", "scale=smoke"]
    for text in settings:
        if "=" not in text or text.startswith(("+", "~")):
            raise ConfigError(f"--set {text}: expected KEY=VALUE, for example hardware.cuda_graphs=false")
        parse_override(text)
        if text.split("=")[0] in WHOLE_GROUPS or text.startswith("hardware."):
            continue
        if results is None and run_id(compose([*plain, text])) != run_id(compose(plain)):
            raise ConfigError(
                f"--set {text} changes what is measured, so its results fit no table of results/: give another folder, "
                "RESULTS=FOLDER (--results FOLDER)"
            )


def applied(experiment: Experiment, overrides: list[str]) -> Experiment:
    """Return the experiment with these overrides in all of its runs."""

    def changed(columns: list[Column]) -> list[Column]:
        return [c.model_copy(update={"overrides": [*c.overrides, *overrides]}) for c in columns]

    if not overrides:
        return experiment
    scales = {
        name: at.model_copy(update={"columns": at.columns and changed(at.columns)})
        for name, at in experiment.scales.items()
    }
    return experiment.model_copy(update={"columns": changed(experiment.columns), "scales": scales})
