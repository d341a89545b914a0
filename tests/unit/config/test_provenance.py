"""Every value of a task, a method and an overlay says on its own line where it comes from."""

import re

import pytest
import yaml

from mora.config.compose import CONFIG_DIR

FILES = [p for group in ("task", "method", "overlay") for p in sorted((CONFIG_DIR / group).glob("*.yaml"))]
SOURCE = re.compile(r"#.*\b(paper|official|ours): \S")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_value_is_without_its_source(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code = line.split("#")[0].strip()
        if not code or code.endswith(":") or code.startswith(("- override", "- _self_", "- lora", "- mora", "name:")):
            continue
        assert SOURCE.search(line), f"{path.name}:{number} names no source: {line.strip()}"


class NoDuplicates(yaml.SafeLoader):
    """OmegaConf and PyYAML take the last of two equal keys without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice among {keys}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_key_stands_twice(path):
    yaml.load(path.read_text(), NoDuplicates)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_file_opens_with_the_command_that_uses_it(path):
    head = [line for line in path.read_text().splitlines()[:2] if not line.startswith("# @package")]
    assert head[0].startswith(("# python run.py ", "# make ")), head[0]
