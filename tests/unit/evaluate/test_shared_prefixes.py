"""Which inputs are grouped by what they begin with, and which are not worth it."""

import random

import pytest

from mora.evaluate import shared_prefixes
from mora.evaluate.shared_prefixes import by_shared_prefix

HEAD, OTHER = tuple(range(100, 160)), tuple(range(200, 260))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(shared_prefixes, "WORTH", 150)


def test_questions_after_the_same_examples_are_a_group_and_others_are_not():
    questions = [(*HEAD, 1, i, *range(i % 7)) for i in range(20)]
    short, lone = [(1, 2, 3), (1, 2, 4)], [(*OTHER, 1), (*OTHER, 2)]
    inputs = [*lone, *questions, *short]
    random.Random(0).shuffle(inputs)
    (nothing, alone), (shared, members) = by_shared_prefix(dict.fromkeys(inputs, 1))
    assert (nothing, sorted(alone)) == (0, sorted([*short, *lone]))
    assert (shared, sorted(members)) == (len(HEAD) + 1, sorted(questions))


def test_a_logit_that_is_wanted_is_never_shared():
    inputs = {(*HEAD, *range(n)): 20 for n in range(8)}
    assert [shared for shared, _ in by_shared_prefix(inputs)] == [len(HEAD) - 20]


def test_a_long_input_that_shares_the_smaller_part_stays_out():
    inputs = [*((*HEAD, i) for i in range(9)), (*HEAD, *range(50, 150))]
    assert [(shared, len(members)) for shared, members in by_shared_prefix(dict.fromkeys(inputs, 1))] == [
        (0, 1),
        (60, 9),
    ]


def test_each_input_is_in_one_group_whatever_they_share():
    draw = random.Random(1)
    inputs = {tuple(draw.choices((0, 1), (9, 1), k=draw.randrange(1, 60))): 1 for _ in range(500)}
    groups = by_shared_prefix(inputs)
    assert sorted(ids for _, members in groups for ids in members) == sorted(inputs)
    for shared, members in groups:
        assert len({ids[:shared] for ids in members}) == 1
        assert all(len(ids) > shared for ids in members)


def test_nothing_gives_no_group():
    assert by_shared_prefix({}) == []
