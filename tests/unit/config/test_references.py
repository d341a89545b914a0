"""A value that one group of configs/ takes from another is seen at both ends: `${...}` there, `(for ...)` here."""

import re

import pytest

from mora.config.source import CONFIG_DIR

# The field that takes a value, in which files, and the field that gives it. A new line needs a comment at both ends.
ACROSS = {
    "method.adapter.target_modules": (("method/lora.yaml", "method/mora.yaml"), "model.target_modules"),
    "method.adapter.operator": (("method/mora.yaml",), "task.operator"),
    "method.adapter.overflow": (("method/mora.yaml",), "task.overflow"),
    "method.restart.every_steps": (("method/relora.yaml", "method/remora.yaml"), "task.restart_every_steps"),
    "method.restart.warmup_steps": (("method/relora.yaml", "method/remora.yaml"), "task.restart_warmup_steps"),
    "hydra.launcher.nodes": (("hydra/launcher/slurm.yaml",), "hardware.nodes"),
    "hydra.launcher.gpus_per_node": (("hydra/launcher/slurm.yaml",), "hardware.processes"),
}
WITHIN = {  # references that take nothing of another group's file
    ("sweep/lr.yaml", "lr"): "${lr_grid:}",
    ("config.yaml", "sweep"): '{dir: "${oc.env:MORA_OUTPUT_DIR,outputs}/multirun", subdir: .}',
}
LINE = re.compile(r"^ *([\w.]+): (.*?)(?: +#(.*))?$")


def lines():
    """Every `key: value  # comment` of configs/, with its file."""
    for path in sorted(CONFIG_DIR.rglob("*.yaml")):
        for line in path.read_text().splitlines():
            if match := LINE.match(line):
                yield (str(path.relative_to(CONFIG_DIR)), *match.groups())


def test_references_are_those_listed_here():
    written = {(file, key): value for file, key, value, _ in lines() if "${" in value}
    listed = {(file, field.rpartition(".")[2]): given for field, (files, given) in ACROSS.items() for file in files}
    assert written.keys() == listed.keys() | WITHIN.keys()
    for place, given in listed.items():
        group, _, key = given.partition(".")
        assert given in written[place] or f"of_{group}:{key}" in written[place]
    assert all(value.strip('"') == WITHIN[place] for place, value in written.items() if place in WITHIN)


@pytest.mark.parametrize("field", ACROSS)
def test_who_gives_a_value_says_where_it_goes(field):
    _, given = ACROSS[field]
    group, _, key = given.partition(".")
    launcher = field.startswith("hydra.")  # of SLURM's hardware alone
    giving = [
        (file, comment)
        for file, name, _, comment in lines()
        if name == key and file.startswith(f"{group}/") and (not launcher or file.endswith("slurm.yaml"))
    ]
    assert giving
    assert [file for file, comment in giving if f"(for {field})" not in (comment or "")] == []
