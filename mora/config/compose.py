"""Hydra's composition, checked and made typed: overrides in, RunConfig out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from .model_folder import identified
from .peft_file import with_settings
from .schema import RunConfig

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
OF_ONE_GRID = ("task", "method", "r", "scale", "model")  # what a grid of rates depends on


class ConfigError(ValueError):
    """A configuration that cannot be run. The message is one line: field, value, what was expected."""


def _lr_grid(*, _root_: DictConfig) -> str:
    """${lr_grid:} of configs/sweep/: the rates of the composed task, method and rank, as Hydra sweeps over them.

    Of what cannot be run: null, so that the one run that is then started says in a line what is wrong.
    """
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, list(RunConfig.model_fields)), resolve=True)
    try:
        return ",".join(f"{lr:g}" for lr in load(values).lr_grid()) or "null"
    except ConfigError:
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
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

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
    import hydra  # a fifth of a second, which who only reads a configuration need not wait for
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return validate(hydra.compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error


def validate(composed: DictConfig) -> RunConfig:
    """A Hydra config, resolved, as a RunConfig with its learning rate filled in.

    Raises: ConfigError.
    """
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return load(values)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from error


def load(values: dict[str, Any]) -> RunConfig:
    """Plain values, as in a run's config.yaml, as a RunConfig. A missing lr becomes the middle of the grid; a folder as the
    model gets its fingerprint, a file as the method its content.

    Raises: ConfigError.
    """
    try:
        config = RunConfig.model_validate(with_settings(values))
        config = config.model_copy(update={"model": identified(config.model)})
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(e, values) for e in error.errors())) from error
    except ValueError as error:  # of the model's folder, or the method's file
        raise ConfigError(str(error)) from error
    if config.lr is None and config.method.trains:
        grid = config.lr_grid()
        config = config.model_copy(update={"lr": grid[len(grid) // 2]})
    return config


def _describe(error: Any, values: Any) -> str:
    where = _field(error["loc"], values)
    if not where:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict):  # a section's own check names its fields
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such field"
    if error["type"] == "missing":
        return f"{where} is missing"
    return f"{where}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _field(loc: tuple[Any, ...], values: Any) -> str:
    """The field as the user writes it: pydantic puts the kind of a section between its name and its fields."""
    parts: list[str] = []
    for i, part in enumerate(loc):
        section = values if isinstance(values, dict) else {}
        if part == section.get("kind") and i < len(loc) - 1:
            continue
        parts.append(str(part))
        values = values[part] if isinstance(values, list) else section.get(part)
    return ".".join(parts)


def one_line(error: Exception) -> str:
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
