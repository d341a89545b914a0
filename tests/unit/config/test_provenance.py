"""Every value of a task, at every scale, and of a method says on its own line where it comes from."""

import re

import pytest
import yaml

from mora.config import cached_composition, compose, provenance
from mora.config.hints import choices
from mora.config.source import CONFIG_DIR

FILES = [p for group in ("task", "method") for p in sorted((CONFIG_DIR / group).rglob("*.yaml"))]
SOURCE = re.compile(r"#.*\b(paper|official|ours): \S")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_value_is_without_its_source(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        code = line.split("#")[0].strip()
        if not code or code.endswith(":") or re.match(r"- (_self_$|lora$|mora$|peft$|/task/\w+/\w+$)|name:", code):
            continue
        assert SOURCE.search(line), f"{path.name}:{number} names no source: {line.strip()}"


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_numbers_in_comments_have_commas_and_percent_signs_no_blank(path):
    for line in path.read_text().splitlines():
        assert not re.search(r"\d %|\d \d{3}(?!\d)", line.partition("#")[2]), line


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


def test_a_run_says_where_its_values_come_from():
    sources = provenance.of_run(compose(["task=metamath", "method=relora", "r=8", "scale=lite", "task.train.epochs=1"]))
    assert sources["task.train.epochs"].startswith("override: 1; paper: Table 5")
    assert sources["task.train.schedule"] == "paper: Table 5"
    assert sources["task.train.global_batch_size"].startswith("ours: ")  # of this scale, not the task's
    assert sources["method.adapter.dropout"].startswith("official: ")  # of the method it builds on
    assert sources["task.data.corpus.local"].startswith("ours: ")
    assert not [path for path, text in sources.items() if not SOURCE.search(f"# {text}")]


def test_nothing_is_an_override_that_was_not_overridden():
    for task in ("tulu2", "metamath", "biomed", "finance", "c4"):
        for method in (["method=fft"], ["method=remora", "r=8"], ["method=lora_plus", "r=8"]):
            for scale in choices(f"task/{task}"):
                config = cached_composition.compose_cached([f"task={task}", f"scale={scale}", *method])
                sources = provenance.of_run(config)
                assert not {k: v for k, v in sources.items() if v.startswith("override")}, (task, method, scale)


def test_the_deviations_are_those_of_the_configs():
    assert provenance.DEVIATIONS.read_text() == provenance.deviations(), "run `make render`"


def test_what_the_paper_says_otherwise_is_among_the_differences():
    """A Gaussian A, financial news that nobody else has, and the end of the rate of methods without restarts."""
    differ = provenance.deviations().split("\n## ")[1]
    assert differ.startswith("Sources differ")
    for setting in ("finance/paper.yaml | `task.data.texts.sources`", "lora.yaml | `method.adapter.init`"):
        assert setting in differ
    assert "c4/paper.yaml | `task.train.min_lr_ratio`" in differ


def test_a_file_that_builds_on_another_tasks_of_its_own_name_takes_its_sources_there(tmp_path):
    own = tmp_path / "mychat" / "smoke.yaml"
    own.parent.mkdir()
    own.write_text("defaults:\n  - /task/tulu2/smoke\n  - _self_\n")
    bases = [str(base.relative_to(CONFIG_DIR)) for base in provenance._bases(own)]
    assert bases[-1] == "task/tulu2/smoke.yaml"
    assert "task/tulu2/paper.yaml" in bases
