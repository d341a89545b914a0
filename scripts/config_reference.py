"""The configuration reference: every field of a run's configuration, from the schema and the files of configs/.

python scripts/config_reference.py            # prints docs/reference/configuration.md; `scales`: docs/reference/scales.md
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mora.config import provenance, schema
from mora.config.source import CONFIG_DIR

HEAD = """# Configuration reference

Generated from the schema and the files of `configs/` when this site is built. `python scripts/config_reference.py` prints
this page.

A run's configuration is composed by Hydra from `configs/config.yaml` and one file of each group, then checked against the
schema: an unknown field or a value of the wrong type ends the command with the name of the field.
`python run.py task=uuid method=mora r=8 scale=smoke --cfg job` prints the composed configuration of a run.

On the command line a field is set by its dotted name, `task.train.epochs=1`. In the tables below, *value* lists the
default of the schema, if there is one, and what each file of the group sets, with the source of the value: the paper, the
official code, or us. Scales other than paper change some of them: [Deviations](../DEVIATIONS.md).
"""
SCALES = """# What the scales change

Generated from the folders of `configs/task/` when this site is built. Each table holds what a scale sets for a task beyond
its file for scale paper, which the [configuration reference](configuration.md) shows. Scale mid builds on lite."""
GROUPS: dict[str, type[BaseModel]] = {
    "task": schema.Task,
    "method": schema.Method,
    "model": schema.Model,
    "scale": schema.Scale,
}
GROUPS |= {"hardware": schema.Hardware, "tracker": schema.Tracker}

WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class _Setting(NamedTuple):
    """A value that the file of a group sets, with its dotted path in a run's configuration."""

    path: str
    value: Any
    source: str
    file: str


def page() -> str:
    """Return the page as Markdown."""
    lines = [HEAD, "## Root", "", _row("field", "type", "meaning", "value"), "|---|---|---|---|"]
    defaults = {setting.path: setting.value for setting in _settings("")}
    texts = field_texts(schema.RunConfig)
    for name in ("r", "lr", "seed"):
        field, text = schema.RunConfig.model_fields[name], texts[name]
        kind, value = _type(field.annotation, field.metadata), f"`{_plain(defaults.get(name))}`"
        lines.append(_row(f"`{name}`", kind, text, value))
    for group, section in GROUPS.items():
        values = defaultdict[str, list[_Setting]](list)
        for setting in _settings(group):
            values[setting.path].append(setting)
        files = [_choice(path) for path in _files(group)]
        lines += ["", f"## `{group}`", "", f"Choices of `configs/{group}/`: {', '.join(f'`{f}`' for f in files)}."]
        lines += _section(group, section, values, set())
    return "\n".join(lines) + "\n"


def scales_page() -> str:
    """Return, as Markdown, the page of what each scale but paper changes in each task."""
    lines = [SCALES]
    for file in sorted((CONFIG_DIR / "task").glob("*/*.yaml")):
        scale, task = file.stem, file.parent.name
        if scale == "paper":
            continue
        lines += ["", f"## {task} at scale {scale}", "", "| field | value | source |", "|---|---|---|"]
        for setting in provenance.settings(file):
            cells = (f"`{setting.path}`", f"`{_plain(setting.value)}`", setting.source)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _files(group: str) -> list[Path]:
    """Return the files of a group of configs/: for tasks, those of scale paper; without a group, the root file."""
    if not group:
        return [CONFIG_DIR / "config.yaml"]
    return sorted((CONFIG_DIR / group).glob("*/paper.yaml" if group == "task" else "*.yaml"))


def _choice(file: Path) -> str:
    """Return the name under which a group has a file. For a task it is the name of the folder."""
    return file.parent.name if file.stem == "paper" and file.parent.parent.name == "task" else file.stem


def _settings(group: str) -> Iterator[_Setting]:
    for path in _files(group):
        for setting in provenance.settings(path):
            yield _Setting(setting.path.removeprefix("configs."), setting.value, setting.source, _choice(path))


def _section(path: str, section: type[BaseModel], values: dict[str, list[_Setting]], seen: set[type]) -> list[str]:
    """Return the table of a section, then those of the sections in it."""
    seen.add(section)
    texts, others = field_texts(section), _files_of_another_kind(path, section, values)
    meaning = ["meaning"] if any(texts.values()) else []
    lines = [*_prose(section), "", _row("field", "type", *meaning, "value"), "|---" * (3 + len(meaning)) + "|"]
    for name, field in section.model_fields.items():
        full = f"{path}.{name}"
        settings = [setting for setting in values.get(full, []) if setting.file not in others]
        shown = "below" if sections(field.annotation) else _values(field, settings)
        text = [texts.get(name, "")] if meaning else []
        lines.append(_row(f"`{full}`", _type(field.annotation, field.metadata), *text, shown))
    for name, field in section.model_fields.items():
        for one in sections(field.annotation):
            if one not in seen:
                lines += ["", f"### `{path}.{name}`: {one.__name__}"]
                lines += _section(f"{path}.{name}", one, values, seen)
    return lines


def _files_of_another_kind(path: str, section: type[BaseModel], values: dict[str, list[_Setting]]) -> set[str]:
    """Return the files that, by the field `kind`, choose another section than this one for `path`."""
    kind = section.model_fields.get("kind")
    mine = get_args(kind.annotation) if kind else ()
    return {setting.file for setting in values.get(f"{path}.kind", []) if mine and setting.value not in mine}


def _prose(section: type[BaseModel]) -> list[str]:
    """Return the docstring of a section, but not one that it inherits."""
    text = section.__doc__ if "__doc__" in vars(section) else None
    return ["", inspect.cleandoc(text)] if text else []


def field_texts(section: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field that has one: the string below it."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = dict[str, str]()
    for node, below in itertools.pairwise(body.body):
        if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            texts[node.target.id] = _cell(str(below.value.value))
    return texts


def _values(field: FieldInfo, settings: list[_Setting]) -> str:
    """Return the schema's default, if there is one, then the values that the group's files set, with names and sources."""
    parts = [] if field.is_required() else [f"`{_plain(field.get_default(call_default_factory=True))}`"]
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for setting in settings:
        grouped[_plain(setting.value), setting.source].append(setting.file)
    for (value, source), files in grouped.items():
        if f"`{value}`" in parts and not source:
            continue
        names = ", ".join(files)
        parts.append(f"`{value}`: {names}" + (f" ({source})" if source else ""))
    return "<br>".join(_cell(part) for part in parts)


def sections(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections in a type, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(section for part in get_args(annotation) for section in sections(part)))


def _type(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], arguments[1:])
    if origin is Literal:
        text = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, UnionType):
        text = " or ".join(_type(one) for one in arguments)
    elif origin is list:
        text = f"list of {_type(arguments[0])}"
    elif origin is dict:
        text = f"map of {_type(arguments[0])} to {_type(arguments[1])}"
    else:
        text = WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    flat = [one for each in constraints for one in (getattr(each, "metadata", None) or [each])]
    signs = [f"{sign} {getattr(one, name)}" for one in flat for name, sign in SIGNS.items() if hasattr(one, name)]
    return " ".join([text, *signs])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: Any) -> str:
    """Return a value as YAML has it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return f"[{', '.join(_plain(one) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_plain(one)}' for key, one in value.items())}}}"
    return str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(scales_page() if sys.argv[1:] == ["scales"] else page(), end="")
