"""The reference of evaluation sets, from their descriptions in mora/data/sets.py.

python scripts/data_sets_reference.py            # prints docs/reference/data-sets.md
"""

from __future__ import annotations

from mora.data.sets import SETS, EvaluationSet

HEAD = """# Evaluation sets

Generated from `mora/data/sets.py` when this site is built. A set is taken from its files in the data folder (`MORA_DATA_DIR`
or `--data-dir`) if all of them are there, else from the Hub. Training compares its rows with the same files that evaluation
scores. The READMEs of `mora/evaluate/tasks` say how each set is scored. What a task trains on stands in its folder of
`configs/task`: [configuration reference](configuration.md#task).

| set | files in the data folder | Hub | fields | compared with training rows | licence |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    return HEAD + "".join(f"| {' | '.join(_cells(name, one))} |\n" for name, one in SETS.items())


def _cells(name: str, one: EvaluationSet) -> list[str]:
    files = [f"{split}: `{pattern}`" for split, patterns in one.files.items() for pattern in patterns]
    files += [f"{split}, as on the Hub: `{file}`" for split, file in one.export.items()]
    hub = "local only"
    if one.hub is not None:
        configs = ", ".join(config for config in one.hub.configs if config)
        hub = f"`{one.hub.id}` at `{one.hub.revision}`" + (f": {configs}" if configs else "")
    fields = ", ".join(dict.fromkeys([*one.fields, *one.questions]))
    compared = f"{one.scored}: {', '.join(one.questions)}" if one.questions else "no"
    return [f"`{name}`", "<br>".join(files), hub, fields, compared, one.licence]


if __name__ == "__main__":
    print(page(), end="")
