"""Rows of every format, made from a small vocabulary. They mean nothing: scale smoke tests the path with them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mora.config.data_schema import SyntheticSource

from .records import Record

NOUNS = (
    "cell",
    "market",
    "enzyme",
    "dividend",
    "receptor",
    "portfolio",
    "antibody",
    "exchange rate",
    "protein",
    "bond",
)
LONG = ("phosphorylation", "capitalisation", "immunoglobulin", "macroeconomics", "transcriptional", "securitisation")
VERBS = ("raises", "lowers", "explains", "precedes", "limits", "follows")
LINKS = ("Therefore", "However", "Moreover", "In other words", "Thus", "In contrast")


def rows(source: SyntheticSource) -> Iterator[Record]:
    """Make `source.rows` rows, as a pure function of the source's seed."""
    rng = random.Random(source.seed)
    for number in range(1, source.rows + 1):
        yield Record(f"synthetic {source.format}, row {number}", _MAKERS[source.format](rng))


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(NOUNS), rng.choice(VERBS), "the", rng.choice(LONG), "of the", rng.choice(NOUNS)]
    long = f"and the {rng.choice(LONG)} {rng.choice(VERBS)} the {rng.choice(LONG)} of every {rng.choice(NOUNS)}"
    return f"The {' '.join(words)} {long}."


def _text(rng: random.Random) -> dict[str, Any]:
    title = f"The {rng.choice(NOUNS)} and the {rng.choice(NOUNS)}"
    body = []
    for _ in range(rng.randint(3, 6)):
        body.append(_sentence(rng))
        if rng.random() < 0.5:
            follows = _sentence(rng)
            body.append(f"{rng.choice(LINKS)}, {follows[0].lower()}{follows[1:]}")
    return {"text": f"{title}\n{' '.join(body)}"}


def _sum(rng: random.Random) -> tuple[str, str, int]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return f"There are {a} and {b} of them. How many in all?", f"{a} + {b} = {a + b}.", a + b


def _asked(rng: random.Random) -> tuple[str, str]:
    noun = rng.choice(NOUNS)
    return f"What does the {noun} do?", f"The {noun} {rng.choice(VERBS)} the {rng.choice(NOUNS)}."


def _messages(rng: random.Random) -> dict[str, Any]:
    turns = []
    for _ in range(rng.randint(1, 2)):
        question, answer = _asked(rng)
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"dataset": "synthetic", "messages": turns}


def _instruction(rng: random.Random) -> dict[str, Any]:
    question, answer = _asked(rng)
    return {"instruction": question, "input": "", "output": answer}


def _metamath(rng: random.Random) -> dict[str, Any]:
    question, answer, total = _sum(rng)
    return {"query": question, "response": f"{answer}\nThe answer is: {total}", "type": "synthetic"}


_MAKERS = {"text": _text, "messages": _messages, "instruction": _instruction, "metamath": _metamath}
