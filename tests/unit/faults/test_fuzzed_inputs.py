"""The short form of `scripts/check_faults.py inputs`, and what it found: every input is taken, or refused in a line."""

import logging

import pytest

from mora.config import ConfigError, compose
from mora.data.records import Record, parse
from mora.errors import DataError
from mora.faults import command_lines, fuzzing
from mora.faults.inputs import Refused, fuzz
from mora.models.load import load_model
from mora.suite import experiments

SEED = 20


@pytest.fixture(autouse=True)
def logs():
    yield
    logging.disable(logging.NOTSET)


def test_fuzzed_command_lines_and_files_are_taken_or_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))
    fuzzed = list(fuzzing.all_kinds(40, SEED, tmp_path, lambda name: True))
    assert [line for kind in fuzzed for line in kind.wrong] == []
    assert len(fuzzed) == 10
    assert sum(kind.tracebacks for kind in fuzzed) == 0
    assert {kind.inputs for kind in fuzzed} == {40, 8, 1}
    assert sum(kind.refused for kind in fuzzed) > 50, "inputs that nobody should give"
    assert any(kind.taken for kind in fuzzed)


def test_the_same_seed_makes_the_same_inputs():
    def asked(seed):
        lines = []
        fuzz("lines", command_lines.command_lines(), lines.append, 3, seed)
        return lines

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_a_traceback_a_long_message_and_a_field_that_is_not_named_are_counted():
    def ask(value):
        raise (Refused("x" * 5000, []), Refused("no name", ["seed"]), KeyError("a"))[next(turn)]

    turn = iter(range(3))
    fuzzed = fuzz("wrong", command_lines.command_lines(), ask, 3, 0)
    assert (fuzzed.inputs, fuzzed.refused, fuzzed.tracebacks) == (3, 2, 1)
    assert ["a message of 5000" in fuzzed.wrong[0], "names none of ['seed']" in fuzzed.wrong[1]] == [True, True]
    assert "KeyError in " in fuzzed.wrong[2]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (f"seed={'9' * 5000}", r"^seed=9+ \.\.\. 9+: cannot be read \(Exceeds the limit"),
        ("scale=0.5", r"^scale=0\.5: expected a name; there are lite, mid, paper, smoke$"),
        ("method=true", r"^method=true: expected a name; there are asylora, "),
        ("method=[[],[]]", r"^method=\[\[\],\[\]\]: expected a name; there are "),
        ("~task=3", r"^~task=3: expected a name; there are biomed, "),
        ("lr={", r"^lr={: cannot be read .*must close"),
        ("=5", r"^'=5': expected KEY=VALUE"),
        ("task.data.pairs=" + "x" * 5000, r"^task\.data\.pairs='x+ \.\.\. x+': input should be"),
    ],
)
def test_a_setting_that_hydra_refuses_obscurely_is_named(argument, expected):
    arguments = ["task=uuid", "method=mora", "r=8", argument]
    with pytest.raises(Refused, match=expected) as refused:
        command_lines.ask((arguments, []))
    assert len(str(refused.value)) < 1000


def test_a_wrong_interval_between_restarts_is_named_and_not_what_follows_from_it():
    with pytest.raises(ConfigError, match=r"^method\.restart\.every_steps='often': input should be a valid integer"):
        compose(["task=uuid", "method=remora", "r=8", "scale=smoke", "method.restart.every_steps=often"])


@pytest.mark.parametrize("shape", ["hidden_size=3", "intermediate_size=true", "vocab_size=auto"])
def test_a_shape_that_cannot_be_built_is_refused_with_what_is_wrong(shape):
    config = compose(["task=uuid", "method=fft", "scale=smoke", f"model.architecture.{shape}"])
    with pytest.raises(ConfigError, match=rf"^model\.architecture cannot be built .*{shape.split('=')[0]}"):
        load_model(config.model, "fp32")


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_that_cannot_share_their_keys_are_refused(heads):
    config = compose(["task=uuid", "method=fft", "scale=smoke", f"model.architecture.num_attention_heads={heads}"])
    expected = rf"^model\.architecture\.num_attention_heads={heads}: expected a multiple of num_key_value_heads=2"
    with pytest.raises(ConfigError, match=expected):
        load_model(config.model, "fp32")


def test_a_field_that_no_llama_has_is_refused():
    config = compose(["task=uuid", "method=fft", "scale=smoke", "+model.architecture.hiden_size=3"])
    with pytest.raises(ConfigError, match=r"^model\.architecture\.hiden_size: LlamaConfig has no such field$"):
        load_model(config.model, "fp32")


def test_made_up_rows_of_a_format_that_is_not_made_are_refused():
    rows = "task.data.corpus.sources=[{kind: synthetic, rows: 8, seed: 0, format: lima}]"
    with pytest.raises(ConfigError, match="format='lima': input should be 'messages', 'instruction'"):
        compose(["task=metamath", "method=fft", "scale=smoke", rows])


def test_an_experiment_with_a_wrong_field_is_refused_in_a_line():
    with pytest.raises(
        ConfigError, match=r"^experiments/table2\.yaml: title is missing; kind is missing; .* more fields$"
    ):
        experiments.checked("table2", {"titel": "a", "columns": [{"name": 3}] * 9})


def test_a_field_with_line_breaks_stays_within_its_line():
    with pytest.raises(DataError, match=r"here:1: field 'text' is missing, .* the row has a b$"):
        parse(Record("here:1", {"a\nb": 1}), "text")
