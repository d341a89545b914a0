"""Data and metrics of the lm-eval task `uuid`."""

from __future__ import annotations

import re
from typing import Any

import datasets

from mora.config import compose
from mora.config.data_schema import UuidData
from mora.data.uuid import make_pairs
from mora.evaluate.choices import as_test_split

UUID_LENGTH = 36
HEX_DIGITS = 32
FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def load(pairs: list[tuple[str, str]] | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load the pairs that the run trained on; outside a run, those of scale paper, of which the first are scale lite's."""
    if pairs is None:
        data = compose(["task=uuid", "method=none"]).task.data
        assert isinstance(data, UuidData)
        pairs = make_pairs(data)
    return as_test_split([{"key": key, "value": value} for key, value in pairs])


def char_accuracy(generated: str, value: str) -> float:
    """Return the share of the 32 hexadecimal digits that are right, position by position.

    Hyphens do not count, and missing digits are wrong. The paper does not define its accuracy. Only this definition has the
    floor that Table 2 shows, 9.8% for unrelated UUIDs.
    """
    digits = _digits(generated.strip()[:UUID_LENGTH])
    return sum(a == b for a, b in zip(digits, _digits(value), strict=False)) / HEX_DIGITS


def score(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    generated = results[0].strip()[:UUID_LENGTH]
    return {
        "uuid_char_acc": char_accuracy(generated, doc["value"]),
        "uuid_exact_match": float(generated == doc["value"]),
        "uuid_well_formed": float(FORM.fullmatch(generated) is not None),
    }


def _digits(text: str) -> str:
    return "".join(c for c in text if c in "0123456789abcdef")
