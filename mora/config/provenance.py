"""Where each value of a run comes from: the comment on its line in configs/, or `override`.

This module also makes docs/DEVIATIONS.md, which `make render` writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .schema import RunConfig
from .source import CONFIG_DIR, ROOT
from .yaml_file import SafeLoader, read_yaml

DEVIATIONS = ROOT / "docs/DEVIATIONS.md"


class Setting(NamedTuple):
    """A leaf of a YAML file: its dotted path in a run's configuration, its value as written, and its comment."""

    path: str
    value: Any
    source: str


def settings(file: Path) -> list[Setting]:
    """Return every leaf of a task's or method's file except its name.

    A list is one leaf, whose comment is the first in it.
    """
    text = file.read_text()
    lines, group = text.splitlines(), file.parent.name
    prefix = "" if text.startswith("# @package _global_") else f"{group}."
    node = yaml.compose(text, SafeLoader)
    return list(_leaves(node, prefix, lines)) if isinstance(node, yaml.MappingNode) else []


def of_run(config: RunConfig) -> dict[str, str]:
    """Return dotted path -> source, for every value that a file of the task or method sets. The last such file counts.

    If a value differs from the file's, it came from the command line or an experiment, and the source is `override`.
    """
    values = config.model_dump(mode="json")
    method = CONFIG_DIR / "method" / f"{config.method.name}.yaml"
    task = CONFIG_DIR / "task" / config.task.name / f"{config.scale.name}.yaml"
    files = [*_bases(method), method, *_bases(task), task]
    written: dict[str, Setting] = {}
    for file in filter(Path.is_file, files):
        for setting in settings(file):
            for above in [path for path in written if setting.path.startswith(f"{path}.")]:
                del written[above]  # it was null in one file, and is a section in a later one
            written[setting.path] = setting
    sources = {}
    for path, setting in written.items():
        if path.startswith("task.lr_grid"):  # the rates that were tried are not a value of one run
            continue
        known, value = _at(values, path)
        if known:
            same = _plain(value) == _plain(_resolved(setting, config))
            sources[path] = setting.source if same else f"override: {value!r}; {setting.source}"
    return sources


def deviations() -> str:
    """Return, as Markdown, settings on which sources differ, those to which we add something, and those that are ours."""
    lines = [
        "# Where sources differ, and what we chose",
        "",
        "Written by `make render` from the comments in `configs/`. The value is the default; the comment names its source,",
        "after `differs:` what another source says, and after `ours:`, behind another source, what we add.",
    ]
    sections: dict[str, list[str]] = {
        "Sources differ": [],
        "The source's value, with our addition or option": [],
        "Ours: the paper and the official code are silent": [],
    }
    differ, added, silent = sections.values()
    files = [file for pattern in ("task/*/paper.yaml", "method/*.yaml") for file in sorted(CONFIG_DIR.glob(pattern))]
    for file in files:
        for setting in settings(file):
            source = setting.source
            if setting.path.endswith("result_version") or not ("differs:" in source or "ours:" in source):
                continue
            section = differ if "differs:" in source else silent if source.startswith("ours:") else added
            cells = (str(file.relative_to(CONFIG_DIR)), f"`{setting.path}`", f"`{setting.value}`", source)
            section.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| file | setting | value | source |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _bases(file: Path) -> list[Path]:
    """Return the files that this file builds on by its defaults list, and those on which they build."""
    if not file.is_file():
        return []
    defaults = (read_yaml(file) or {}).get("defaults", [])
    names = [name for name in defaults if isinstance(name, str) and name != "_self_"]
    direct = [(CONFIG_DIR if name[0] == "/" else file.parent) / f"{name.strip('/')}.yaml" for name in names]
    return [base for one in direct for base in (*_bases(one), one)]


def _leaves(node: yaml.Node, path: str, lines: list[str]) -> Iterator[Setting]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if key.value in ("defaults", "name"):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _leaves(value, f"{path}{key.value}.", lines)
            continue
        spanned = lines[key.start_mark.line : max(value.end_mark.line, key.start_mark.line + 1)]
        comment = next((c for line in spanned if (c := line.partition(" #")[2].strip())), "")
        loader = yaml.SafeLoader("")
        yield Setting(f"{path}{key.value}", loader.construct_object(value, deep=True), comment)


def _at(values: Any, path: str) -> tuple[bool, Any]:
    for part in path.split("."):
        if not isinstance(values, dict) or part not in values:
            return False, None
        values = values[part]
    return True, values


def _resolved(setting: Setting, config: RunConfig) -> Any:
    """Return a setting's value. A reference to other values of the run, ${...}, is resolved there."""
    if not isinstance(setting.value, str) or "${" not in setting.value:
        return setting.value
    from omegaconf import OmegaConf  # a worker needs it only once, at its end

    from . import resolvers  # noqa: F401  (registers what configs/ refer to)

    run = OmegaConf.create(config.model_dump(mode="json", exclude_none=True))  # in files, such fields are absent
    OmegaConf.update(run, setting.path, setting.value)
    value = OmegaConf.select(run, setting.path)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _plain(value: Any) -> Any:
    """Return a value as in JSON: keys are text, and numbers compare as numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
