"""Hydra's composition, checked and typed: from overrides to a RunConfig."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mora.errors import ConfigError, MoraError, one_line, short

from . import hints, resolvers  # noqa: F401  (the second registers what configs/ refer to)
from .load import load
from .schema import RunConfig
from .source import CONFIG_DIR

# A name that is set by the choice of a group -> the group. A run whose name were changed would pass for another run.
GROUP_OF_NAME = {
    "method.name": "method",
    "scale.name": "scale",
    "task.name": "task",
    "task.data.kind": "task",
}
GRID_SETTINGS = ("task", "method", "r", "scale", "model")  # the settings that a grid of learning rates depends on


def _lr_grid(*, _root_: DictConfig) -> str:
    """Return ${lr_grid:} of configs/sweep/: the learning rates of the task, method and rank, in Hydra's form of a sweep.

    It is "null" if there can be no such run. Then one run is started, and its error says what is wrong.
    """
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(_root_, list(RunConfig.model_fields)), resolve=True)
    try:
        return ",".join(f"{lr:g}" for lr in load(values).lr_grid()) or "null"
    except ConfigError:
        return "null"


OmegaConf.register_new_resolver("lr_grid", _lr_grid, replace=True)


def check_sweep(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would do wrongly, or would refuse in unclear words.

    Task and scale choose a file before anything is swept over, so a call can have only one of each. Hydra takes one list of
    learning rates for all runs, so with `sweep=` each of GRID_SETTINGS can have only one value. Every run of a multirun is
    composed here, so that a wrong value is found before the first run starts.

    Raises:
        ConfigError: The arguments make no runs.
    """
    overrides = _check_form(arguments)
    sweeps_lr = any(argument.startswith("sweep=") for argument in arguments)
    multirun = bool({"-m", "--multirun"} & {*arguments})
    if multirun and (shown := {"--cfg", "-c", "--info", "-i"} & {text.split("=")[0] for text in arguments}):
        raise ConfigError(f"{min(shown)} shows one run: leave -m and its further values out")
    if sweeps_lr and not (multirun or "hardware=slurm" in arguments):
        raise ConfigError("sweep= without -m would be one run: python run.py -m sweep=... for all of its runs")
    for override in overrides:
        if sweeps_lr and override.key_or_group in GRID_SETTINGS and override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: expected one value beside sweep=, whose rates depend on it; "
                "give one task, method, r and scale per call"
            )
        if override.key_or_group in ("task", "scale") and override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line}: expected one {override.key_or_group} per call; several methods, ranks and seeds "
                "may be given"
            )
    if multirun:
        of_runs = [override for override in overrides if not override.key_or_group.startswith("hydra")]
        for run in BasicSweeper.split_arguments(of_runs, max_batch_size=None)[0]:
            compose(run)


# Hydra's options that take a value from the next argument.
OPTIONS_WITH_VALUE = {
    "-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-i", "--info",
}  # fmt: skip


def _check_form(arguments: Sequence[str]) -> list[Override]:
    """Return the settings among the arguments, parsed. Refuse, in our own words, what Hydra's grammar would refuse.

    Raises:
        ConfigError: A setting has dashes, as in other programs, is cut in two by a blank, or is not closed; or neither task
            nor method is given.
    """
    before, overrides = "", []
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("--exp"):  # argparse accepts the beginning of an option for the whole
            raise ConfigError("--experimental-rerun would run what a pickle says; give the settings themselves")
        if argument.startswith("-"):
            if argument.startswith("--") and (name in RunConfig.model_fields or name in hints.ALSO_CALLED):
                name = hints.ALSO_CALLED.get(name, name)
                raise ConfigError(f"{short(argument)}: settings have no dashes: {name}={value or 'VALUE'}")
        elif not name.strip("+~ ") or (
            not equals and not argument.startswith("~") and before not in OPTIONS_WITH_VALUE
        ):
            if before.startswith("-"):
                raise ConfigError(
                    f"{before} {short(argument)}: settings have no dashes: {before.lstrip('-')}={short(argument)}"
                )
            raise ConfigError(f"{short(repr(argument))}: expected KEY=VALUE; {_blank(before)}")
        elif equals and value.endswith(","):
            raise ConfigError(f"{short(repr(argument))} ends in a comma: {_blank('')}")
        elif equals or argument.startswith("~"):
            overrides.append(parse_override(argument))
        before = argument
    if "--resolve" in arguments and not {"--cfg", "-c"} & {*arguments}:
        raise ConfigError("--resolve: expected with --cfg job alone; a setting r is r=8, without dashes")
    given = {argument.lstrip("+").split("=")[0] for argument in arguments}
    if not {"task", "method"} & given and not any(argument.startswith("-") for argument in arguments):
        raise ConfigError("task and method are missing: python run.py task=uuid method=mora r=8; --help lists both")
    return overrides


def _blank(before: str) -> str:
    if any(before.count(begin) > before.count(end) for begin, end in ("[]", "{}")):
        return "a setting with braces, brackets or blanks stands between quotes: 'KEY=[A, B]'"
    return "a list has no blanks: method=lora,mora"


def parse_override(argument: str) -> Override:
    """Return a setting as Hydra reads it.

    Raises:
        ConfigError: It is not in Hydra's grammar, a group's choice is no name, or it sets a name that comes with a choice.
    """
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
        value = override.value()
    except (HydraException, ValueError, RecursionError) as error:  # of Hydra; a number of thousands of digits; brackets
        message = one_line(str(error).split("See https://hydra.cc/docs/")[0])
        if "=~" in argument:
            raise ConfigError(f"{short(argument)}: ~ stays as it is here: write $HOME, or the whole path") from error
        raise ConfigError(
            f"{short(argument)}: cannot be read ({message:.80}): brackets, braces and quotes that open must close, and the "
            "whole setting stands between quotes: 'KEY=[A, B]'"
        ) from error
    group = override.key_or_group
    named = override.is_sweep_override() or isinstance(value, (str, QuotedString))
    named = (named or (value is None and override.is_delete())) and "${" not in str(value)
    if group in _groups() and not named:
        raise ConfigError(f"{short(argument)}: expected a name; there are {', '.join(hints.choices(group))}")
    if of := GROUP_OF_NAME.get(group):
        raise ConfigError(
            f"{short(argument)}: it comes with the {of}, another is {of}=NAME; one of your own is added to "
            f"configs/{of}, with its own name"
        )
    return override


@cache
def _groups() -> set[str]:
    return {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}


def compose(overrides: Sequence[str]) -> RunConfig:
    """Return the run that `python run.py OVERRIDES` would start.

    Raises:
        ConfigError: The overrides make no run.
    """
    for text in overrides:
        parse_override(text)
    try:
        return validate(compose_unresolved(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(hydra_line(error)) from error


def compose_unresolved(overrides: Sequence[str]) -> DictConfig:
    """Return what Hydra composes from configs/ and these settings, without resolving references.

    Raises:
        ConfigError: There is no such task, or the task has no such scale.
        HydraException: Hydra refuses another of the settings.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = hydra.compose("config", overrides=with_task_file(overrides))
    check_names(config, dict(text.split("=", 1) for text in overrides if "=" in text))
    return config


def check_names(composed: DictConfig, chosen: Mapping[str, Any]) -> None:
    """Refuse a file of a task or method that does not set its own name, and so keeps that of the file it builds on.

    Args:
        composed: The run's settings.
        chosen: Group -> choice, NAME or NAME/SCALE.

    Raises:
        ConfigError: The file has another's name.
    """
    for group in ("task", "method"):
        wanted = str(chosen.get(group, "")).strip("'\"").split("/")[0]
        if wanted in hints.choices(group) and (name := composed[group].name) != wanted:
            place = (
                "below `task:`, in files that begin with `# @package _global_`"
                if group == "task"
                else "in its own file"
            )
            raise ConfigError(
                f"{group}={wanted}: the files of configs/{group} make {group}.name={name!r}, under which its runs would "
                f"pass for those of {name}; expected `name: {wanted}` {place}"
            )


def with_task_file(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `task=NAME/SCALE`, a file in the task's folder that Hydra finds, in place of `task=NAME`.

    Raises:
        ConfigError: There is no such task, or it has no file for the scale.
    """
    given = {key: value.strip("'\"") for key, _, value in (argument.partition("=") for argument in arguments)}
    name, scale = given.get("task"), given.get("scale", "paper")
    if name is None:
        return [*arguments]
    if name not in hints.choices("task"):
        raise ConfigError(_no_such_choice("task", name))
    if scale not in hints.choices("scale"):
        scale = "paper"  # Hydra then says what is wrong with the scale
    if not (CONFIG_DIR / "task" / name / f"{scale}.yaml").is_file():
        there = ", ".join(sorted(path.stem for path in (CONFIG_DIR / "task" / name).glob("*.yaml")))
        raise ConfigError(f"scale={scale}: task {name} has no such scale; it has {there}")
    return [f"task={name}/{scale}" if argument.startswith("task=") else argument for argument in arguments]


def validate(composed: DictConfig) -> RunConfig:
    """Resolve what Hydra composed, and return it as a run with its learning rate filled in.

    Raises:
        ConfigError: A value is wrong or missing.
    """
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        return load(values)
    except OmegaConfBaseException as error:
        raise ConfigError(hydra_line(error)) from error


def hydra_line(error: Exception) -> str:
    """Return an error of Hydra or OmegaConf as one helpful line: the field or choice, and what may have been meant."""
    if isinstance(error, MoraError):
        return str(error)
    text, *_ = str(error).split("Config search path:")  # added by Hydra; it does not help
    text = re.sub(r"\.\s*To append to your config use .*", ": there is no such field", text)  # no field can be added
    text = short(text.removeprefix("In 'config': "), 1000)
    if missing := re.match(r"You must specify '(\w+)'", text):
        return f"{missing[1]} is missing: expected {missing[1]}=NAME; there are {', '.join(hints.choices(missing[1]))}"
    if several := re.match(r"Ambiguous value for argument '(.*?)'\s*1\.", text):
        return f"{several[1]}: several values are several runs: python run.py -m ...; a list is KEY=[A,B]"
    if (unknown := re.match(r"Could not find '(\w+)/([^']*)'", text)) and hints.choices(unknown[1]):
        return _no_such_choice(*unknown.groups())
    field = re.search(r"Could not override '([\w.]+)'", text)
    return one_line(text) + (hints.field(field[1]) if field else "")


def _no_such_choice(group: str, name: str) -> str:
    there = ", ".join(hints.choices(group))
    return f"{group}={short(name)}: there is no such {group}; there are {there}{hints.choice(group, name)}"
