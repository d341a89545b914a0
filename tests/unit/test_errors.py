"""What an error suggests instead of a name that does not exist."""

import pytest

from mora.errors import did_you_mean, nearest

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
