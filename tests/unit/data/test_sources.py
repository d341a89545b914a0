"""Rows from files of every kind; bad data are refused in one line that names file, line and field."""

import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mora.config.cached_composition import compose_cached as compose
from mora.config.data_schema import Corpus, FileSource, HubSource, Overlap
from mora.data import files, overlap, sources
from mora.data.records import Record, parse
from mora.data.sets import SETS
from mora.errors import DataError, MissingData
from mora.io import sha256

ROWS = [{"text": "one"}, {"text": "zwei ü"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def local(pattern, format="text", sha256=None, max_rows=None):
    return FileSource(kind="files", files=str(pattern), sha256=sha256, format=format, max_rows=max_rows)


def hub(max_rows=None):
    return HubSource(
        kind="hub", id="owner/set", files="data/*.jsonl", revision="main", format="text", max_rows=max_rows
    )


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "array.json", "a.parquet"]
)
def test_rows_of_every_kind_of_file(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        data = json.dumps(ROWS, indent=1).encode() if name == "array.json" else LINES
        if name.endswith(".gz"):
            data = gzip.compress(data)
        if name.endswith(".zst"):  # two frames, as parallel compressors write
            data = zstandard.compress(LINES[:10]) + zstandard.compress(LINES[10:])
        path.write_bytes(data)
    records = list(files.read_rows(path))
    assert [record.row for record in records] == ROWS
    assert records[1].where in (f"{path}:2", f"{path}, row 2")


MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", MARK + "text\r\none\r\nzwei ü\r\n".encode()),
        ("a.tsv", MARK + "text\none\nzwei ü\n".encode()),
        ("a.jsonl", MARK + LINES),
        ("a.jsonl.zst", zstandard.compress(MARK + LINES)),
        ("array.json", MARK + json.dumps(ROWS).encode()),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert [record.row for record in files.read_rows(tmp_path / name)] == ROWS


def test_whole_surrogate_pairs_are_characters(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert [record.row for record in files.read_rows(tmp_path / "a.jsonl")] == [{"text": "\U0001f600"}]


def test_a_csv_field_may_be_a_whole_article(tmp_path):
    text = "word " * 100_000
    (tmp_path / "a.csv").write_text(f"text,n\n{text},1\n")
    assert [record.row for record in files.read_rows(tmp_path / "a.csv")] == [{"text": text, "n": "1"}]


def test_a_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    texts = pyarrow.array([b"one", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not a whole parquet file \('utf-8' codec can't decode"):
        list(files.read_rows(tmp_path / "a.parquet"))


def test_max_rows_ends_a_source_and_files_come_in_order(tmp_path):
    for i in (1, 0):
        (tmp_path / f"part-{i}.jsonl").write_text("".join(json.dumps({"text": f"{i}{j}"}) + "\n" for j in range(3)))
    rows = sources.resolve_source(local(tmp_path / "part-*.jsonl", max_rows=4))
    assert [record.row["text"] for record in rows] == ["00", "01", "02", "10"]
    assert set(rows.facts["sha256"]) == {"part-0.jsonl", "part-1.jsonl"}


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", LINES + b'{"text": "cut', "a.jsonl:3: not JSON"),
        ("a.jsonl", LINES + b"[1]\n", "a.jsonl:3: is [1], expected an object with fields"),
        ("a.jsonl", LINES + b'{"text": "\xff"}\n', "a.jsonl:3: not JSON ('utf-8' codec can't decode"),
        ("a.jsonl.gz", gzip.compress(LINES * 100, mtime=0)[:-9], "a.jsonl.gz: damaged or cut off"),
        ("a.jsonl.zst", zstandard.compress(LINES * 100)[:-5], "a.jsonl.zst: the compressed stream is cut off"),
        ("a.jsonl.zst", b"not zstandard", "a.jsonl.zst: damaged"),
        ("a.parquet", b"PAR1", "a.parquet: not a whole parquet file"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv:3: 1 fields, expected 2: a, b"),
        ("a.csv", b"a\n\xff\n", "a.csv:2: byte 0 is not utf-8"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n7,8\n', "a.csv:3: not CSV (unexpected end of data)"),
        ("a.csv", b'a,b\n1,"2"3\n', "a.csv:2: not CSV (',' expected after '\"')"),
        ("a.csv", b"a,b\n1,2\r3,4\n", "a.csv:2: not CSV (new-line character seen in unquoted field"),
        ("a.jsonl", LINES + b'{"x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "a.jsonl:3: JSON nested too deeply"),
        ("a.jsonl", LINES + b'{"x": ' + b"1" * 5000 + b"}", "a.jsonl:3: not JSON (Exceeds the limit (4300 digits)"),
        ("a.jsonl", LINES + rb'{"text": "\ud83d"}', "a.jsonl:3: field 'text' holds half of a surrogate pair"),
        (
            "a.jsonl",
            LINES + rb'{"a": [1, {"b": "\uDE00!"}]}',
            "a.jsonl:3: field 'a[1].b' holds half of a surrogate pair",
        ),
        ("a.jsonl", LINES + rb'{"a\udead": 1}', r"a.jsonl:3: field 'a\udead' holds half of a surrogate pair"),
        ("a.jsonl", LINES + b'{"text": "\xed\xa0\xbd"}', "a.jsonl:3: not JSON ('utf-8' codec can't decode"),
        ("a.json", rb'[{"text": "a"}, {"text": "\ud83d"}]', "a.json: field '[1].text' holds half of a surrogate pair"),
        ("a.xlsx", b"", "a.xlsx: cannot read files of this kind"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as error:
        list(files.read_rows(tmp_path / name))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        ("text", {"body": "x"}, "f:7: field 'text' is missing, expected a text; the row has body"),
        ("text", {"text": " "}, "f:7: field 'text' is empty"),
        ("metamath", {"query": "q", "response": None}, "f:7: field 'response' is None, expected a text"),
        ("metamath", {"query": "q", "response": ""}, "f:7: field 'response' is empty"),
        ("messages", {"messages": []}, "f:7: field 'messages' is [], expected a list that is not empty"),
        ("messages", {"messages": [{"role": "bot", "content": ""}]}, "f:7: field 'messages[0]' is"),
        (
            "messages",
            {"messages": [{"role": "user", "content": "q"}]},
            "has no assistant turn, so no token to train on",
        ),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "f:7: field 'conversations[0]' is"),
        ("lima", {"conversations": ["q", None]}, "f:7: field 'conversations[1]' is None, expected a text"),
        (
            "lima",
            {"conversations": [{"from": "human"}]},
            "f:7: field 'conversations[0]' is {'from': 'human'}, expected",
        ),
        ("gsm8k", {"question": "q", "answer": "no mark"}, "f:7: field 'answer' has no '#### '"),
        ("math", {"problem": "q", "solution": "no box"}, "f:7: field 'solution' has no \\boxed{} result"),
    ],
)
def test_a_wrong_row_names_file_line_and_field(format, row, expected):
    with pytest.raises(DataError) as error:
        parse(Record("f:7", row), format)
    assert expected in str(error.value)


def test_missing_files_and_other_files_than_the_pinned_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"set/x.jsonl: set MORA_DATA_DIR to the folder that holds it"):
        sources.resolve_source(local("set/x.jsonl"))
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    with pytest.raises(
        DataError,
        match=rf"no file matches {tmp_path}/set/x.jsonl: put it there, or set MORA_DATA_DIR",
    ):
        sources.resolve_source(local("set/x.jsonl"))
    with pytest.raises(
        DataError, match=r"no file matches /no/such/\*.jsonl: expected the path of a file, or a pattern"
    ):
        sources.resolve_source(local("/no/such/*.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"a.jsonl has sha256 .*, expected 00"):
        sources.resolve_source(local("a.jsonl", sha256="00"))


def test_a_hub_that_cannot_be_reached_says_which_files_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError) as error:
        sources.resolve_source(hub())
    assert f"put its data/*.jsonl into {tmp_path}/owner/set/" in str(error.value)
    assert "\n" not in str(error.value)
    (tmp_path / "owner/set/data").mkdir(parents=True)
    (tmp_path / "owner/set/data/train.jsonl").write_bytes(LINES)
    rows = sources.resolve_source(hub(max_rows=1))
    assert [record.row for record in rows] == ROWS[:1]
    assert rows.facts["commit"] == "local"


@pytest.mark.parametrize(
    ("task", "part", "stand_ins"),
    [
        ("tulu2", "corpus", "instruct/train.jsonl.zst"),
        ("metamath", "corpus", "gsm8k/train.jsonl and math/train.jsonl"),
        ("biomed", "texts", "biomed_text/train-*.jsonl.zst"),
        ("biomed", "instructions", "instruct/train.jsonl.zst"),
        ("finance", "texts", "finance_text/train-*.jsonl.zst"),
        ("finance", "instructions", "instruct/train.jsonl.zst"),
        ("c4", "corpus", "pretrain_text/train-*.jsonl.zst"),
    ],
)
def test_without_the_hub_the_stand_ins_of_scale_lite_are_named(monkeypatch, tmp_path, task, part, stand_ins):
    corpus = getattr(compose([f"task={task}", "scale=lite", "method=none"]).task.data, part)
    with pytest.raises(MissingData) as error:
        sources.resolve(corpus)
    assert str(error.value).endswith(f"; or put {stand_ins} into $MORA_DATA_DIR/, taken instead at this scale")
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    first = tmp_path / corpus.local[0].files.replace("*", "0")
    first.parent.mkdir()
    first.write_bytes(LINES)
    if len(corpus.local) == 1:
        assert [rows.paths for rows in sources.resolve(corpus)] == [(first,)]
    else:
        with pytest.raises(MissingData, match=rf"; or put math/train.jsonl into {tmp_path}/, taken instead"):
            sources.resolve(corpus)


def test_without_stand_ins_none_are_named():
    with pytest.raises(MissingData) as error:
        sources.resolve(compose(["task=c4", "method=none"]).task.data.corpus)
    assert str(error.value).endswith("or log in where it is gated")


@pytest.mark.parametrize("pattern", ["", ".", "**.jsonl", "/"])
def test_what_is_no_pattern_of_files_is_refused(monkeypatch, tmp_path, pattern):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError, match=rf"files='{re.escape(pattern)}' is no pattern .*: expected one such as"):
        sources.resolve_source(local(pattern))


def test_local_files_stand_in_for_the_hub_where_all_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    corpus = Corpus(sources=[hub()], local=[local("a.jsonl"), local("b.jsonl")])
    for name in ("a.jsonl", "owner/set/data/train.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    assert [r.paths[0].name for r in sources.resolve(corpus)] == ["train.jsonl"]
    (tmp_path / "b.jsonl").write_bytes(LINES)
    assert [r.paths[0].name for r in sources.resolve(corpus)] == ["a.jsonl", "b.jsonl"]


def test_files_of_the_users_own_are_never_replaced_by_the_stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    for name in ("stand_in.jsonl", "own.jsonl"):
        (tmp_path / name).write_bytes(LINES)
    corpus = Corpus(sources=[local("own.jsonl")], local=[local("stand_in.jsonl")])
    assert [r.paths[0].name for r in sources.resolve(corpus)] == ["own.jsonl"]


def test_a_csv_field_in_quotes_keeps_its_line_break(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,n\r\n"one\ntwo, three",1\r\n\r\nfour,2\r\n')
    records = list(files.read_rows(tmp_path / "a.csv"))
    assert [record.row for record in records] == [{"text": "one\ntwo, three", "n": "1"}, {"text": "four", "n": "2"}]
    assert records[1].where == f"{tmp_path}/a.csv:5"


def test_a_changed_file_has_another_sha256(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    first = sha256(path)
    assert sha256(path) == first
    path.write_bytes(LINES + b"\n")
    assert sha256(path) != first


def test_each_of_two_files_of_one_name_has_its_sha256(tmp_path):
    for part in "ab":
        (tmp_path / part).mkdir()
        (tmp_path / part / "train.jsonl").write_bytes(LINES)
    before = sources.resolve_source(local(tmp_path / "*/train.jsonl")).facts["sha256"]
    assert list(before) == ["a/train.jsonl", "b/train.jsonl"]
    (tmp_path / "a/train.jsonl").write_bytes(LINES * 2)
    assert sources.resolve_source(local(tmp_path / "*/train.jsonl")).facts["sha256"] != before


HEADLINES = "headline/gold-dataset-sinha-khandait.csv"
QUESTION = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May"


@pytest.fixture
def index():
    made = overlap.Index()
    made.add("gsm8k", [QUESTION, "What is 7 times 8 plus 1?", "Why?"])
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (QUESTION, "gsm8k"),
        (f"Answer this. {QUESTION.upper()}. How many?", "gsm8k"),
        (QUESTION.replace("April", "June"), None),
        (" ".join(QUESTION.split()[:16]), "gsm8k"),  # 4 of its 8 runs of 13 words
        (" ".join(QUESTION.split()[:15]), None),
        ("what is 7 times 8, plus 1", "gsm8k"),
        ("what is 7 times 9, plus 1", None),
        ("Why?", None),
    ],
)
def test_overlap_is_half_of_a_question_or_all_of_a_short_one(index, text, expected):
    assert index.find(text) == expected


def test_the_index_is_the_same_in_every_process():
    assert overlap._grams(["natalia", "sold", "clips"], 2) == [12253561640473210325, 5514432831399376209]


def test_a_set_that_is_not_here_is_named_as_not_compared():
    made = overlap.build(Overlap(sets=["fpb"], action="drop"))
    assert made.missing == ["fpb"]


@pytest.mark.parametrize(
    ("name", "file", "data", "expected"),
    [
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "Why?"}\n{"ques', ":2: not JSON"),
        ("gsm8k", "gsm8k/test.jsonl", '{"answer": "4"}', ":1: field 'question' is missing, expected a text or a list"),
        ("math", "math/test.jsonl", '{"problem": 3}', ":1: field 'problem' is 3, expected a text or a list"),
        ("math", "math/test.jsonl", "", ": there are no questions"),
        ("mmlu", "mmlu/test/a_test.csv", "Why?,a,b,c,d,A\nWhy n", ":2: 1 fields, expected 6: question, four options"),
        ("mmlu", "mmlu/test/a_test.csv", "Why?,a,b,c,d,E", ":1: the answer is 'E', expected a letter A to D"),
        ("pubmedqa", "pubmedqa/ori_pqal.json", '{\n"1": {"QUES', ": not JSON (Unterminated string starting at: line 2"),
        ("pubmedqa", "pubmedqa/ori_pqal.json", '{"1": 2}', ": field '1' is 2, expected an object with fields"),
        ("pubmedqa", "pubmedqa/ori_pqal.json", '{"1": {"QUESTION": "Why?"}}', ", 1: field 'CONTEXTS' is missing"),
        ("fpb", "fpb/all-data.csv", 'label,news\npositive,"Sales ro', ":2: not CSV (unexpected end of data)"),
        (
            "headline",
            "headline/gold-dataset-sinha-khandait.csv",
            "Dates\tNews\n1\tGold\n2",
            ":3: 1 fields, expected 2: Dates, News",
        ),
        ("pubmedqa", "pubmedqa/ori_pqal.json", "[]", ": is [], expected an object with fields"),
        ("ner", "fin_ner/FIN3_test.conll", "Loan NNP - O\nAgree", ":2: is 'Agree', expected a word and its tags"),
        ("convfinqa", "convfinqa/dev.json", "{}", ": field 'dev' is missing, expected a list of objects"),
        (
            "convfinqa",
            "convfinqa/dev.json",
            '{"dev": [{"doc": null}]}',
            ", dev[0]: field 'doc': is None, expected an obj",
        ),
    ],
)
def test_a_damaged_set_is_refused_not_taken_for_absent(monkeypatch, tmp_path, name, file, data, expected):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(data)
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError) as error:
        overlap.build(Overlap(sets=[name], action="report"))
    assert f"{tmp_path / file}{expected}" in str(error.value)
    assert str(error.value).endswith(f"; mend the file or leave {name} out of task.data.overlap.sets")
    assert "\n" not in str(error.value)


def test_the_hubs_form_of_pubmedqa_is_read_or_refused(tmp_path):
    path = tmp_path / "a.parquet"
    row = {"question": "Why?", "context": {"contexts": ["So.", "Or so."]}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert [r.row for r in SETS["pubmedqa"].rows(path)] == [{"QUESTION": "Why?", "CONTEXTS": ["So.", "Or so."]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "Why?"}]), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 1: field 'context': is None, expected an object"):
        list(SETS["pubmedqa"].rows(path))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gsm8k", 1319),
        ("math", 5000),
        ("mmlu", 14042),
        ("pubmedqa", 4358),
        ("fpb", 4846),
        ("headline", 10570),
        ("fiqa_sa", 200),
        ("ner", 303),
        ("convfinqa", 842),
    ],
)
def test_every_question_of_the_real_sets_is_read(real_data, name, count):
    assert len(overlap.questions_of(SETS[name])) == count


@pytest.mark.parametrize("name", [name for name, one in SETS.items() if one.questions])
def test_a_real_question_within_a_training_text_is_found(real_data, name):
    made = overlap.build(Overlap(sets=[name], action="drop"))
    assert not made.missing
    questions = [q for q in overlap.questions_of(SETS[name]) if len(overlap._words(q)) >= 2 * overlap.NGRAM]
    for question in questions[:: max(1, len(questions) // 20)]:
        assert made.find(f"It was said that {question} And so on.") == name
