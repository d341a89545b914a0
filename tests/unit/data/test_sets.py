"""Each evaluation set is described once, and what configs/ say of its files agrees."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from mora.config.data_schema import HeldOut
from mora.config.source import CONFIG_DIR
from mora.data.sets import SETS, EvaluationSet
from mora.errors import MissingData


def test_the_sets_that_training_may_be_compared_with_are_those_with_questions():
    assert sorted(get_args(HeldOut)) == sorted(name for name, one in SETS.items() if one.questions)


@pytest.mark.parametrize("name", SETS)
def test_a_set_can_be_had_and_read(name):
    one = SETS[name]
    assert one.scored in one.files
    assert {*one.export} <= {*one.files}
    if one.hub is not None:
        assert one.hub.id.count("/") == 1
        assert bool(one.hub.files) == bool(one.questions), (
            "training reads the hub's files, evaluation its configurations"
        )


def test_no_file_belongs_to_two_sets():
    patterns = [pattern for one in SETS.values() for patterns in one.files.values() for pattern in patterns]
    assert len(patterns) == len(set(patterns))


def sources(values):
    """The data sources anywhere in a YAML file."""
    if isinstance(values, dict):
        yield from [values] if values.get("kind") in ("files", "hub") else []
        values = list(values.values())
    for value in values if isinstance(values, list) else []:
        yield from sources(value)


def test_tasks_train_on_no_scored_file_and_on_no_other_file_of_a_sets_folder():
    training = [pattern for one in SETS.values() for pattern in one.files.get("train", ())]
    folders = {Path(pattern).parts[0] for one in SETS.values() if one.questions for pattern in one.files[one.scored]}
    read = [
        source["files"]
        for path in (CONFIG_DIR / "task").rglob("*.yaml")
        for source in sources(yaml.safe_load(path.read_text()))
        if source["kind"] == "files"
    ]
    of_sets = [file for file in read if Path(file).parts[0] in folders]
    assert {"gsm8k/train.jsonl", "math/train.jsonl"} <= {*of_sets}
    assert {*of_sets} <= {*training}


def test_a_split_is_there_if_each_of_its_files_is(tmp_path):
    one = EvaluationSet("MIT", {"test": ("a/*.csv", "b.csv")}, export={"test": "rows.jsonl"})
    assert one.local("test", None) == []
    (tmp_path / "a").mkdir()
    for name in ("a/2.csv", "a/1.csv"):
        (tmp_path / name).write_text("")
    assert one.local("test", tmp_path) == []
    with pytest.raises(MissingData, match=r"/b\.csv does not exist: put the file there, or set MORA_DATA_DIR"):
        one.required("test", tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    assert [path.name for path in one.local("test", tmp_path)] == ["rows.jsonl"]
    (tmp_path / "b.csv").write_text("")
    assert [path.name for path in one.required("test", tmp_path)] == ["1.csv", "2.csv", "b.csv"]
