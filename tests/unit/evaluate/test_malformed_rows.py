"""Malformed rows of raw evaluation sets are refused in one line with file, line and field; odd but right ones are read."""

import json

import pytest

from mora.errors import DataError
from mora.evaluate import __main__ as command
from mora.evaluate import synthetic
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.c4 import c4_task
from mora.evaluate.tasks.finance import finance_local, finance_task
from mora.evaluate.tasks.metamath import metamath_task
from mora.evaluate.tasks.mmlu import mmlu_task
from mora.models.tokenizers import character_tokenizer

ABSTRACT = {"QUESTION": "Does it?", "CONTEXTS": ["We asked."], "LABELS": ["AIM"], "final_decision": "yes"}
TALK = {"conv_questions": ["what were sales?"], "executed_answers": [4.0]}
REPORT = {"pre_text": "", "post_text": "", "table": {"2008": {"sales": 4.0}}}
TURNS = {"id": "a", "doc": REPORT, "dialogue": TALK}
OPINION = {"sentence": "up", "info": [{"target": "X", "sentiment_score": "0.5"}]}
CHOICE = {"input": "Which?", "options": ["a", "b"], "gold_index": 1}
FILLED = {"input": "How many?", "label": "4"}
SUM = {"question": "2 + 2?", "answer": "So.\n#### 4"}
PROBLEM = {"problem": "2 + 2?", "solution": "It is $\\boxed{4}$."}
LETTERED = {"question": "2 + 2?", "subject": "anatomy", "choices": ["3", "4", "5", "6"], "answer": 1}


def pubmedqa(folder, wrong):
    put(folder / "pubmedqa/ori_pqal.json", {"1": ABSTRACT, "77": ABSTRACT | wrong})
    return biomed_task.load_pubmedqa_local


def convfinqa(folder, wrong):
    put(folder / "convfinqa/dev.json", {"dev": [TURNS, TURNS | wrong]})
    return finance_local.load_convfinqa


def fiqa(folder, wrong):
    for kind in ("headline", "post"):
        for split in ("train", "test"):
            put(folder / f"fiqa_sa/task1_{kind}_ABSA_{split}.json", {str(i): OPINION for i in range(5)})
    put(folder / "fiqa_sa/task1_headline_ABSA_test.json", {"1": OPINION, "77": OPINION | wrong})
    return finance_local.load_fiqa_sa


def adaptllm_choice(folder, wrong):
    put(folder / "adaptllm/FPB.jsonl", CHOICE, CHOICE | wrong)
    return lambda d: finance_task.load_choice("FPB", d)


def adaptllm_text(folder, wrong):
    put(folder / "adaptllm/ConvFinQA.jsonl", FILLED, FILLED | wrong)
    return lambda d: finance_task.load_generation("ConvFinQA", d)


def gsm8k(folder, wrong):
    put(folder / "gsm8k/test.jsonl", SUM, SUM | wrong)
    return metamath_task.load_gsm8k


def math(folder, wrong):
    put(folder / "math/test.jsonl", PROBLEM, PROBLEM | wrong)
    return metamath_task.load_math


def mmlu(folder, wrong):
    put(folder / "mmlu/dev.jsonl", LETTERED, LETTERED | wrong)
    put(folder / "mmlu/test.jsonl", LETTERED)
    return lambda d: mmlu_task.load(1, False, data_dir=d)


def c4(folder, wrong):
    put(folder / "c4/validation.jsonl", {"text": "a"}, {"text": "a"} | wrong)
    return lambda d: c4_task.load(character_tokenizer(), d)


def put(path, *rows):
    put_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("records", "wrong", "expected"),
    [
        (
            pubmedqa,
            {"final_decision": "perhaps"},
            "ori_pqal.json, 77: field 'final_decision' is 'perhaps', expected yes",
        ),
        (pubmedqa, {"final_decision": None}, "ori_pqal.json, 77: field 'final_decision' is None, expected a text"),
        (pubmedqa, {"LABELS": []}, "77: field 'LABELS' is [], expected a list of texts"),
        (pubmedqa, {"LABELS": ["AIM", "RESULTS"]}, "'RESULTS'], expected one for each of the 1 CONTEXTS"),
        (pubmedqa, {"CONTEXTS": "We asked."}, "77: field 'CONTEXTS' is 'We asked.', expected a list of texts"),
        (convfinqa, {"dialogue": TALK | {"executed_answers": []}}, "dev[1], dialogue: field 'executed_answers' is []"),
        (convfinqa, {"dialogue": TALK | {"executed_answers": [True]}}, "expected a text or number for each of the 1"),
        (convfinqa, {"dialogue": {}}, "dev[1], dialogue: field 'conv_questions' is missing, expected a list of texts"),
        (convfinqa, {"doc": REPORT | {"table": []}}, "dev.json, dev[1], doc: field 'table' is [], expected an object"),
        (convfinqa, {"doc": REPORT | {"table": {"2008": 4}}}, "doc, table: field '2008' is 4, expected an object"),
        (convfinqa, {"doc": REPORT | {"pre_text": ["a"]}}, "dev[1], doc: field 'pre_text' is ['a'], expected a text"),
        (fiqa, {"sentence": None}, "headline_ABSA_test.json, 77: field 'sentence' is None, expected a text"),
        (fiqa, {"info": {}}, "headline_ABSA_test.json, 77: field 'info' is {}, expected a list of objects"),
        (fiqa, {"info": [{"target": "X"}]}, "77, info[0]: field 'sentiment_score' is missing, expected a number"),
        (fiqa, {"info": [{"target": "X", "sentiment_score": "good"}]}, "field 'sentiment_score' is 'good', expected"),
        (fiqa, {"info": [{"target": "X", "sentiment_score": "nan"}]}, "field 'sentiment_score' is 'nan', expected"),
        (
            adaptllm_choice,
            {"gold_index": 2},
            "FPB.jsonl:2: field 'gold_index' is 2, expected the index of one of its 2",
        ),
        (adaptllm_choice, {"gold_index": 1.0}, "FPB.jsonl:2: field 'gold_index' is 1.0, expected the index"),
        (
            adaptllm_choice,
            {"options": ["a", ""]},
            "FPB.jsonl:2: field 'options' is ['a', ''], expected a list of texts",
        ),
        (adaptllm_choice, {"options": "ab"}, "FPB.jsonl:2: field 'options' is 'ab', expected a list of texts"),
        (adaptllm_choice, {"input": 3}, "FPB.jsonl:2: field 'input' is 3, expected a text that is not empty"),
        (adaptllm_text, {"label": []}, "ConvFinQA.jsonl:2: field 'label' is [], expected a text or number, or a list"),
        (adaptllm_text, {"label": {"a": 1}}, "ConvFinQA.jsonl:2: field 'label' is {'a': 1}, expected a text or number"),
        (gsm8k, {"answer": 4}, "gsm8k/test.jsonl:2: field 'answer' is 4, expected a text"),
        (gsm8k, {"answer": "#### ²"}, "test.jsonl:2: field 'answer' is '#### ²', expected a text that ends in '#### '"),
        (gsm8k, {"answer": "#### --5"}, "test.jsonl:2: field 'answer' is '#### --5', expected a text that ends in"),
        (gsm8k, {"question": None}, "gsm8k/test.jsonl:2: field 'question' is missing"),
        (math, {"solution": 4}, "math/test.jsonl:2: field 'solution' is 4, expected a text"),
        (math, {"solution": "It is 4."}, "math/test.jsonl:2: field 'solution' is 'It is 4.', expected a text with its"),
        (math, {"solution": "\\boxed{4"}, "math/test.jsonl:2: field 'solution' is '\\\\boxed{4', expected a text with"),
        (math, {"solution": "\\boxedx{4}"}, "math/test.jsonl:2: field 'solution' is"),
        (
            mmlu,
            {"choices": ["3", "4", "5"]},
            "dev.jsonl:2: field 'choices' is ['3', '4', '5'], expected a list of four",
        ),
        (mmlu, {"answer": "B"}, "dev.jsonl:2: field 'answer' is 'B', expected the index of the right choice, 0 to 3"),
        (mmlu, {"answer": 4}, "dev.jsonl:2: field 'answer' is 4, expected the index of the right choice, 0 to 3"),
        (c4, {"text": 5}, "validation.jsonl:2: field 'text' is 5, expected a text"),
    ],
)
def test_a_wrong_field_is_refused_with_its_place(tmp_path, records, wrong, expected):
    load = records(tmp_path, wrong)
    with pytest.raises(DataError) as refused:
        load(str(tmp_path))
    assert str(refused.value).startswith(str(tmp_path))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("records", "odd", "answer"),
    [
        (math, {"solution": "So $\\fbox{\\frac{1}{2}}$."}, "\\frac{1}{2}"),
        (math, {"solution": "So $\\boxed 5$."}, "5"),
        (gsm8k, {"answer": "#### -1,200"}, "-1200"),
        (adaptllm_text, {"label": ["0.14", "14%"]}, "0.14"),
        (adaptllm_text, {"label": 0.14}, "0.14"),
        (convfinqa, {"dialogue": TALK | {"executed_answers": ["yes"]}}, "yes"),
    ],
)
def test_odd_but_legitimate_values_are_read(tmp_path, records, odd, answer):
    assert records(tmp_path, odd)(str(tmp_path))["test"][-1]["answer"] == answer


def fpb(folder, text):
    put_text(folder / "fpb/all-data.csv", text)
    return finance_local.load_fpb


def headline(folder, text):
    put_text(folder / "headline/gold-dataset-sinha-khandait.csv", text)
    return finance_local.load_headline


def headlines(value, rows=20):
    names = "\t".join(["News", *finance_local.QUESTIONS])
    return f"{names}\n" + "".join(f"gold {i}\t{value}\t0\t0\t0\t1\t0\tnone\n" for i in range(rows))


def piboso(folder, text):
    put_text(folder / "nicta_piboso/train_clean.txt", text)
    return biomed_task.load_piboso_local


def ner(folder, text):
    put_text(folder / "fin_ner/FIN5_train.conll", text)
    return finance_local.load_ner


@pytest.mark.parametrize(
    ("records", "text", "expected"),
    [
        (fpb, "", "fpb/all-data.csv: there are no rows"),
        (fpb, "label,news\n", "fpb/all-data.csv: there are no rows"),
        (fpb, "label,news\nneutral,Sales rose.\n", " examples for 5 shots"),
        (fpb, "label,news\ngood,Sales rose.\n", "all-data.csv:2: field 'label' is 'good', expected one of negative, "),
        (fpb, "label,news\nneutral,\n", "fpb/all-data.csv:2: field 'news' is '', expected a text that is not empty"),
        (headline, headlines("2"), "field 'Price Direction Up' is '2', expected 0 or 1"),
        (headline, headlines("0", 3), "gold-dataset-sinha-khandait.csv: 3 examples for 5 shots"),
        (piboso, "###1\noutcome\tIt worked.\n", "train_clean.txt, role 'background': 0 examples for 2 shots"),
        (ner, "Ann NN B I-PER\n", "fin_ner/FIN5_train.conll: 1 examples for 20 shots"),
    ],
)
def test_a_wrong_or_short_file_is_refused_with_its_name(tmp_path, records, text, expected):
    with pytest.raises(DataError) as refused:
        records(tmp_path, text)(str(tmp_path))
    assert expected in str(refused.value)


def test_a_json_file_of_another_form_is_refused(tmp_path):
    put(tmp_path / "pubmedqa/ori_pqal.json", [ABSTRACT])
    with pytest.raises(DataError, match=r"ori_pqal\.json: is \[.*, expected an object with fields"):
        biomed_task.load_pubmedqa_local(str(tmp_path))
    put(tmp_path / "convfinqa/dev.json", {"train": []})
    with pytest.raises(DataError, match=r"dev\.json: field 'dev' is missing, expected a list of objects"):
        finance_local.load_convfinqa(str(tmp_path))


def test_an_error_names_what_there_is_but_not_a_thousand_rows(tmp_path):
    put(tmp_path / "pubmedqa/ori_pqal.json", {**{f"id{i}": ABSTRACT for i in range(1000)}, "last": 7})
    with pytest.raises(
        DataError, match=r"field 'last' is 7, expected an object with fields; the row has id0, "
    ) as caught:
        biomed_task.load_pubmedqa_local(str(tmp_path))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_malformed_row_ends_the_command_in_one_line(tmp_path, capsys):
    gsm8k(tmp_path, {"answer": 4})
    arguments = ["tiny", "--task", "metamath_gsm8k", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    assert command.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"mora.evaluate: {tmp_path}/gsm8k/test.jsonl:2: field 'answer' is 4, expected")


def test_mmlu_without_shots_reads_no_dev_rows_and_bio_mmlu_no_other_subject(tmp_path):
    synthetic.write(tmp_path)
    for path in (tmp_path / "mmlu/dev").iterdir():
        path.write_text("damaged\n")
    (tmp_path / "mmlu/test/astronomy_test.csv").write_text("damaged\n")
    assert len(mmlu_task.load(0, True, "bio", str(tmp_path))["test"]) == synthetic.ROWS
    with pytest.raises(
        DataError, match=r"anatomy_dev\.csv:1: 1 fields, expected 6: question, four options and a letter"
    ):
        mmlu_task.load(5, True, "bio", str(tmp_path))
    (tmp_path / "mmlu/dev/anatomy_dev.csv").write_text("Which?,a,b,c,d,A\n")
    with pytest.raises(DataError, match="mmlu/dev, subject 'anatomy': 1 examples for 5 shots"):
        mmlu_task.load(5, True, "bio", str(tmp_path))


def test_mmlu_without_shots_needs_no_dev_folder(tmp_path):
    put(tmp_path / "mmlu/test.jsonl", LETTERED)
    assert len(mmlu_task.load(0, False, data_dir=str(tmp_path))["test"]) == 1


def test_gold_answers_of_which_none_fits_are_said_to_be_too_long(tmp_path):
    put(tmp_path / "gsm8k/test.jsonl", SUM)
    with pytest.raises(
        DataError, match=r"^max_length=9: none of the 1 questions fits .* at least \d+ tokens: raise --max"
    ):
        metamath_task.load_gsm8k_gold(str(tmp_path), tokenizer=character_tokenizer(), max_length=9)
