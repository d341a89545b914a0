"""What is fuzzed beside command lines: files that people write, keep or bring, by the code that reads them."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from mora import results
from mora.adapter import MoraConfig
from mora.config.data_schema import RowFormat, SyntheticSource
from mora.config.peft_file import NAME, with_settings
from mora.config.source import ROOT
from mora.config.yaml_file import read_yaml
from mora.data import synthetic as made_up
from mora.data.files import read_rows
from mora.data.records import Record, parse
from mora.errors import MoraError
from mora.evaluate import synthetic
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.c4 import c4_task
from mora.evaluate.tasks.finance import finance_task
from mora.evaluate.tasks.metamath import metamath_task
from mora.evaluate.tasks.mmlu import mmlu_task
from mora.families.any_peft import AnyPeft
from mora.families.base import Size
from mora.models.tokenizers import character_tokenizer
from mora.suite import experiments

from .inputs import Refused
from .values import plain


class Kind(NamedTuple):
    name: str
    inputs: SearchStrategy[Any]
    ask: Callable[[Any], None]


def kinds(scratch: Path) -> list[Kind]:
    """`scratch`: a folder for the files that are read."""
    return [
        Kind("adapter configurations", _mora_settings(), _ask_mora),
        Kind("files of PEFT methods", changed(_vera()), lambda values: _ask_peft(scratch, values)),
        Kind(
            "result files", st.one_of(changed(_result()), broken(_text(_result()))), lambda v: _ask_result(scratch, v)
        ),
        Kind("rows", st.one_of([st.tuples(st.just(f), changed(_row(f))) for f in get_args(RowFormat)]), _ask_row),
        Kind("files of rows", _row_files(), lambda file: _ask_rows(scratch, *file)),
        Kind("task files", _task_files(scratch), lambda file: _ask_task(scratch, *file)),
        Kind("experiments", changed(_experiment()), lambda values: _ask_experiment(values)),
    ]


@st.composite
def changed(draw: Any, values: Any) -> Any:
    """JSON values with one to three of their parts replaced, removed or added."""
    whole = {"": copy.deepcopy(values)}
    for _ in range(draw(st.integers(1, 3))):
        inside, key = draw(st.sampled_from(_places(whole)[:400]))
        how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if how == "add" and isinstance(inside[key], dict):
            inside[key][draw(st.text(max_size=10))] = draw(plain())
        elif how == "remove" and key != "":
            del inside[key]
        else:
            inside[key] = draw(plain())
    return whole[""]


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


@st.composite
def broken(draw: Any, data: bytes) -> bytes:
    """Cut, or with some bytes changed, or put in, or none at all."""
    how, at = draw(st.sampled_from(["cut", "flip", "insert", "other"])), draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :] if data else b""
    return data[:at] + draw(st.binary(max_size=30)) + data[at:] if how == "insert" else draw(st.binary(max_size=60))


def _text(values: Any) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode(errors="surrogatepass")


def _mora_settings() -> SearchStrategy[dict[str, Any]]:
    names = (
        "r",
        "target_modules",
        "exclude_modules",
        "operator",
        "groups",
        "split",
        "pad",
        "pairs",
        "overflow",
        "bias",
    )
    more = ("rhat_rounding", "rank_pattern", "mora_dropout", "init_weights", "modules_to_save", "layers_to_transform")
    last = ("layers_pattern", "trainable_token_indices", "target_parameters", "ensure_weight_tying", "mora_version")
    return st.dictionaries(st.sampled_from([*names, *more, *last]), plain(), min_size=1, max_size=3)


def _ask_mora(settings: dict[str, Any]) -> None:
    """Make a configuration: a library answers with an exception of Python's, so its words must help."""
    try:
        MoraConfig(**settings)
    except (ValueError, TypeError) as error:
        raise Refused(str(error), list(settings)) from error


def _vera() -> dict[str, Any]:
    return {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj"], "vera_dropout": 0.0, "projection_prng_key": 0}


def _ask_peft(scratch: Path, values: Any) -> None:
    file = scratch / NAME
    file.write_bytes(_text(values))
    run = {"method": {"config": str(file), "adapter": {"kind": "peft", "settings": None}}}
    try:
        settings = with_settings(run)["method"]["adapter"]
        adapter = AnyPeft.model_validate(settings)
        adapter.peft_config(Size(None, None, adapter.modules, {}))
    except ValueError as error:  # a ConfigError is one, too; of pydantic's, `load` makes a line
        raise Refused(str(error).split("\n")[0], ["method.config", "AnyPeft"]) from error


@cache
def _result() -> dict[str, Any]:
    (path, *_) = sorted((ROOT / "results" / "runs").glob("uuid-*[0-9a-f].json"))
    return json.loads(path.read_text())


def _ask_result(scratch: Path, values: Any) -> None:
    file = scratch / "result.json"
    file.write_bytes(values if isinstance(values, bytes) else _text(values))
    try:
        results.read(file).text()
    except MoraError as error:
        raise Refused(str(error), ["result.json is damaged ("]) from error


OF_THE_HUB: dict[str, dict[str, Any]] = {
    "lima": {"conversations": ["Why?", "So."], "source": "here"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
    "openorca": {"system_prompt": "", "question": "Why?", "response": "So."},
    "gsm8k": {"question": "2 + 2?", "answer": "<<2+2=4>>4\n#### 4"},
    "math": {"problem": "2 + 2?", "solution": "It is $\\boxed{4}$."},
}


def _row(format: str) -> dict[str, Any]:
    if format in OF_THE_HUB:
        return OF_THE_HUB[format]
    (record,) = made_up.rows(SyntheticSource(kind="synthetic", rows=1, seed=0, format=format))  # type: ignore[arg-type]
    return record.row


def _ask_row(row: tuple[str, Any]) -> None:
    if not isinstance(row[1], dict):
        return  # the reader of files refuses it
    try:
        parse(Record("here:1", row[1]), row[0])
    except MoraError as error:
        raise Refused(str(error), ["here:1"]) from error


def _row_files() -> SearchStrategy[tuple[str, bytes]]:
    rows = "".join(json.dumps(_row("gsm8k")) + "\n" for _ in range(3)).encode()
    whole = {"a.jsonl": rows, "a.json": b"[" + b",".join(rows.splitlines()) + b"]", "a.csv": b'a,b\n1,"x\ny"\n2,z\n'}
    whole |= {"a.tsv": b"a\tb\n1\t2\n", "a.jsonl.gz": gzip.compress(rows), "a.jsonl.zst": _zst(rows)}
    whole |= {"a.parquet": _parquet(), "a.txt": b"text"}
    return st.one_of([st.tuples(st.just(name), broken(data)) for name, data in whole.items()])


def _zst(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def _parquet() -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2], "b": ["x", "y"]}), out)
    return out.getvalue()


def _ask_rows(scratch: Path, name: str, data: bytes) -> None:
    file = scratch / name
    file.write_bytes(data)
    try:
        list(read_rows(file))
    except MoraError as error:
        raise Refused(str(error), [str(file)]) from error


LOADERS: dict[str, Callable[[str], Any]] = {
    "adaptllm/FPB.jsonl": lambda d: finance_task.load_choice("FPB", d),
    "adaptllm/Headline.jsonl": lambda d: finance_task.load_headline(d),
    "adaptllm/NER.jsonl": lambda d: finance_task.load_generation("NER", d),
    "adaptllm/ConvFinQA.jsonl": lambda d: finance_task.load_generation("ConvFinQA", d),
    "adaptllm/PubMedQA.jsonl": lambda d: biomed_task.load_adapt("PubMedQA", d),
    "gsm8k/test.jsonl": lambda d: metamath_task.load_gsm8k(d),
    "math/test.jsonl": lambda d: metamath_task.load_math(d),
    "mmlu/test/anatomy_test.csv": lambda d: mmlu_task.load(1, False, data_dir=d),
    "c4/validation.jsonl": lambda d: c4_task.load(character_tokenizer(), d),
}


def _task_files(scratch: Path) -> SearchStrategy[tuple[str, bytes]]:
    synthetic.write(scratch / "task_files")
    strategies: list[SearchStrategy[tuple[str, bytes]]] = []
    for name in LOADERS:
        data = (scratch / "task_files" / name).read_bytes()
        strategies.append(st.tuples(st.just(name), broken(data)))
        if name.endswith(".jsonl"):
            rows = changed(json.loads(data.splitlines()[0])).map(_text)
            strategies.append(st.tuples(st.just(name), st.tuples(st.just(data), rows).map(b"".join)))
    return st.one_of(strategies)


def _ask_task(scratch: Path, name: str, data: bytes) -> None:
    file = scratch / "task_files" / name
    whole = file.read_bytes()
    file.write_bytes(data)
    try:
        LOADERS[name](str(scratch / "task_files"))
    except MoraError as error:
        raise Refused(str(error), [name]) from error
    finally:
        file.write_bytes(whole)


@cache
def _experiment() -> dict[str, Any]:
    return read_yaml(ROOT / "experiments" / "table2.yaml")


def _ask_experiment(values: Any) -> None:
    try:
        experiments.checked("table2", values)
    except MoraError as error:
        raise Refused(str(error), ["experiments/table2.yaml"]) from error
