"""Hydra's composition, checked and made typed: overrides in, RunConfig out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mora.errors import ConfigError, MoraError

from .load import load
from .schema import RunConfig
from .source import CONFIG_DIR

OF_ONE_GRID = ("task", "method", "r", "scale", "model")  # what a grid of rates depends on


def _lr_grid(*, _root_: DictConfig) -> str:
    """${lr_grid:} of configs/sweep/: the rates of the composed task, method and rank, as Hydra sweeps over them.

    Of what cannot be run: null, so that the one run that is then started says in a line what is wrong.
    """
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, list(RunConfig.model_fields)), resolve=True)
    try:
        return ",".join(f"{lr:g}" for lr in load(values).lr_grid()) or "null"
    except MoraError:
        return "null"


OmegaConf.register_new_resolver("lr_grid", _lr_grid, replace=True)


def _restart_warmup(every_steps: int) -> int:
    """${restart_warmup:N} of configs/method/: 50 steps, as the paper, but at most its largest share of an interval, 5 %."""
    return min(50, every_steps // 20)


OmegaConf.register_new_resolver("restart_warmup", _restart_warmup, replace=True)


def check_sweep(arguments: Sequence[str]) -> None:
    """What Hydra would do wrongly, or refuse obscurely. Its defaults list is made before a task that is swept over is known;
    and it takes one list of rates for everything: `sweep=` goes with one value each of OF_ONE_GRID. Every run of a multirun
    is composed here, so that a wrong value is found before the first one starts.

    Raises: ConfigError.
    """
    _check_form(arguments)
    rates = any(argument.startswith("sweep=") for argument in arguments)
    several = bool({"-m", "--multirun"} & {*arguments}) or "hardware=slurm" in arguments
    if rates and not several:
        raise ConfigError("sweep= without -m would be one run: python run.py -m sweep=... for all of its runs")
    given = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(given)
    for override in overrides:
        if rates and override.key_or_group in OF_ONE_GRID and override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: expected one value beside sweep=, whose rates depend on it; "
                "give one task, method, r and scale a call"
            )
        if override.key_or_group == "task" and override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: expected one task a call; several methods, ranks and seeds may be given"
            )
    if {"-m", "--multirun"} & {*arguments}:
        of_runs = [override for override in overrides if not override.key_or_group.startswith("hydra")]
        for run in BasicSweeper.split_arguments(of_runs, max_batch_size=None)[0]:
            compose(run)


def _check_form(arguments: Sequence[str]) -> None:
    """Raises: ConfigError for a setting with dashes, as other programs have it, or one that a blank has cut in two."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and (name in RunConfig.model_fields or name in MEANT):
            raise ConfigError(f"{argument}: settings have no dashes: {MEANT.get(name, name)}={value or 'VALUE'}")
        if not argument.startswith(("-", "~")) and "=" not in argument and not before.startswith("-"):
            raise ConfigError(f"{argument!r}: expected KEY=VALUE; a list has no blanks: method=lora,mora")


def compose(overrides: Sequence[str]) -> RunConfig:
    """The run that `python run.py OVERRIDES` would start.

    Raises: ConfigError.
    """
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return validate(hydra.compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_line(error)) from error


def validate(composed: DictConfig) -> RunConfig:
    """A Hydra config, resolved, as a RunConfig with its learning rate filled in.

    Raises: ConfigError.
    """
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return load(values)
    except OmegaConfBaseException as error:
        raise ConfigError(hydra_line(error)) from error


def hydra_line(error: Exception) -> str:
    """Return what Hydra or OmegaConf says as one line that helps: the field or choice, and what was meant."""
    text, *_ = str(error).split("Config search path:")  # Hydra's, and no help
    text = re.sub(r"\.\s*To append to your config use \S+", ": there is no such field", text)  # none can be added
    text, grammar, _ = text.partition("See https://hydra.cc/docs/")
    hint = "; put a setting with braces, brackets or blanks between quotes: 'KEY=[A, B]'" if grammar else ""
    return " ".join(text.split()) + _meant(text) + hint


MEANT = {  # what other programs call it
    "rank": "r",
    "lora_r": "r",
    "learning_rate": "lr",
    "epochs": "task.train.epochs",
    "num_train_epochs": "task.train.epochs",
    "max_steps": "task.train.max_steps (with task.train.epochs=null)",
    "batch_size": "task.train.global_batch_size",
    "per_device_train_batch_size": "hardware.micro_batch_size",
    "lora_alpha": "method.adapter.lora_alpha",
    "target_modules": "method.adapter.target_modules",
}


def _meant(text: str) -> str:
    """`; did you mean ...`, of a group's choice or a field that does not exist; else nothing."""
    if choice := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, wanted = choice.groups()
        names = [path.stem for path in (CONFIG_DIR / group).glob("*.yaml")]
        by_part = [name for name in names if wanted and name.startswith(wanted.lower())]
        near = by_part or get_close_matches(wanted.lower(), names, 1, 0.5)
        return f"; did you mean {group}={near[0]}?" if near else ""
    if (field := re.search(r"Could not override '([\w.]+)'", text)) and field[1].split(".")[-1] in MEANT:
        return f"; did you mean {MEANT[field[1].split('.')[-1]]}?"
    return ""
