"""Values that nobody should give, and somebody will: for Hypothesis, as plain values and as a command line has them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LONG = 100_000  # characters
INTERPOLATIONS = (
    "${seed}", "${task}", "${task.name}", "${r}", "${lr}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "${no.such}", "${",
    "${${seed}}", "${lr_grid:}", "${lr_grid:1}", "${restart_warmup:x}", "${restart_warmup:}", "${restart_warmup:-5}",
    "${now:%Y}", "${hydra:job.name}", "${oc.decode:1}", "${.name}", "???", "\\${seed}",
)  # fmt: skip
WORDS = (
    "", " ", "null", "None", "true", "no", "nan", "inf", "-inf", "1e999", "0x10", "1_000", "..", "/", "~", "-1", "0", "=",
    "a=b", "a,b", "[", "]", "{", "}", "'", '"', "[]", "{}", "[[[]]]", "{a:1}", "*", "%s", "{0}", "\\", "-", "--", "#", "@",
    "ä", "日本語", "🦙", "e\u0301", "\u202eabc", "\u00a0", "a\tb", "a b", "../../etc/passwd", "~/x", "lr_like", "mora",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 2**64, 10**30, -(2**63), 10**400,
    0.0, -0.0, 0.5, 1.5, -1.5, 1e-320, 1e308, 1e-9, 0.999999, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip


def scalars() -> SearchStrategy[Any]:
    chosen = st.sampled_from([*NUMBERS, *WORDS, *INTERPOLATIONS, None, True, False])
    return st.one_of(
        chosen, chosen, st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["x", "9", "é"]).map(_long)
    )


def plain() -> SearchStrategy[Any]:
    """JSON values, nested."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
        max_leaves=6,
    )


def typed() -> SearchStrategy[str]:
    """Draw what stands after KEY= on a command line, as a shell would hand it on, well formed for Hydra or not."""
    return st.one_of(scalars().map(_word), plain().map(_grammar), st.text(max_size=30)).map(_for_a_process)


def _long(letter: str) -> str:
    return letter * LONG


def _word(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not _is_huge(value) else f"{value:x}"


def _is_huge(value: Any) -> bool:
    """Tell whether Python refuses to print the number, which it does beyond 4,300 digits."""
    return isinstance(value, int) and abs(value) > 10**4000


def _grammar(value: Any) -> str:
    """Write lists and maps as Hydra reads them."""
    if isinstance(value, list):
        return f"[{','.join(map(_grammar, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_key(key)}:{_grammar(inner)}' for key, inner in value.items())}}}"
    return _word(value)


def _key(text: str) -> str:
    return text if text.isidentifier() else "'" + text.replace("\\", "").replace("'", "") + "'"


def _for_a_process(text: str) -> str:
    """No operating system hands on a zero byte, and Python decodes what is no UTF-8."""
    return (
        text.replace("\0", "")
        .encode(errors="surrogateescape" if _only_escapes(text) else "replace")
        .decode(errors="surrogateescape")
    )


def _only_escapes(text: str) -> bool:
    return all("\udc80" <= letter <= "\udcff" for letter in text if "\ud800" <= letter <= "\udfff")
