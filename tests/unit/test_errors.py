"""How a command ends, and what an error suggests instead of a name that does not exist."""

import pytest

from mora.errors import DataError, did_you_mean, ends_in_one_line, nearest, short

KNOWN = ("lr", "lr_grid", "epochs", "none", "qwen_0b5", "qwen_1b5", "MMLU")


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("LR", "lr"),
        ("lr_", "lr_grid"),
        ("epoch", "epochs"),
        ("eopchs", "epochs"),
        ("qwen", "qwen_0b5"),
        ("mmlu", "MMLU"),
        ("cosine", None),
        ("e", None),
        ("", None),
    ],
)
def test_the_nearest_name_begins_so_or_looks_so(wanted, near):
    assert nearest(wanted, KNOWN) == near
    assert did_you_mean(nearest(wanted, KNOWN)) == (f"; did you mean {near}?" if near else "")


def test_of_no_names_none_is_near():
    assert nearest("lr", []) is None


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("a.jsonl:1: not\nJSON"), 2, "mora data: a.jsonl:1: not JSON\n"),
        (FileNotFoundError(2, "No such file", "a.jsonl"), 2, "mora data: [Errno 2] No such file: 'a.jsonl'\n"),
        (KeyError("id"), 2, "mora data: 'id'\n"),
        (KeyboardInterrupt(), 130, "mora data: stopped; start it again\n"),
    ],
)
def test_a_command_ends_in_one_line(raised, code, said, capsys):
    @ends_in_one_line("mora data", KeyError, stopped="stopped; start it again")
    def main(arguments):
        raise raised

    assert main([]) == code
    assert capsys.readouterr().err == said


def test_a_bug_keeps_its_traceback_and_an_exit_code_is_handed_on():
    assert ends_in_one_line("mora data")(lambda: 1)() == 1
    with pytest.raises(ZeroDivisionError):
        ends_in_one_line("mora data")(lambda: 1 // 0)()


def test_what_is_shown_of_a_value_has_no_line_breaks():
    assert short("a\nb\r\n\tc") == "a b c"
    assert len(short("x" * 500)) < 110
