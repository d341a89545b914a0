"""The prompts of fixed records, word for word, and how answers are read."""

import random
import re

import pytest

from mora.config.cached_composition import compose_cached as compose
from mora.data.sets import SETS
from mora.evaluate.harness import TASKS
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.c4 import c4_task
from mora.evaluate.tasks.finance import finance_local, finance_task
from mora.evaluate.tasks.metamath import metamath_task
from mora.evaluate.tasks.mmlu import mmlu_task
from mora.evaluate.tasks.uuid import uuid_task

ROW = {"question": "2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1}
SHOT = {**ROW, "question": "1 + 1?", "choices": ["1", "3", "2", "0"], "answer": 2}
HEADER = "The following are multiple choice questions (with answers) about  abstract algebra.\n\n"
ASKED = "2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"


def test_mmlu_without_and_with_shots():
    assert mmlu_task.prompt(ROW, [], chat=False) == HEADER + ASKED
    shown = "1 + 1?\nA. 1\nB. 3\nC. 2\nD. 0\nAnswer: C\n\n"
    expected = f"<|user|>\n{HEADER}{shown}{ASKED}\n<|assistant|>\nThe answer is:"
    assert mmlu_task.prompt(ROW, [SHOT], chat=True) == expected


def test_mmlu_drops_shots_that_do_not_fit(tmp_path):
    for split, rows in {"dev": 5, "test": 1}.items():
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"anatomy_{split}.csv").write_text("q?,a,b,c,d,B\n" * rows)

    class Characters:
        eos_token_id, eos_token = None, None

        def __call__(self, text):
            return {"input_ids": list(text)}

    words = Characters()

    def shots(max_length):
        docs = mmlu_task.load(5, True, data_dir=str(tmp_path), tokenizer=words, max_length=max_length)["test"]
        return docs[0]["prompt"].count("Answer: B")

    assert shots(2048) == 5
    assert 0 < shots(250) < 5
    assert shots(10) == 0


@pytest.mark.parametrize(("scale", "name"), [("paper", "c4_perplexity"), ("lite", "c4_perplexity_local")])
def test_perplexity_is_measured_on_blocks_as_long_as_those_trained_on(scale, name):
    task = compose(["task=c4", "method=none", f"scale={scale}"]).task
    written = (TASKS / "c4" / f"{name}.yaml").read_text()
    block = re.search(r"block: (\d+)", written)
    assert task.evaluation.tasks == [name]
    assert task.data.max_length == (int(block[1]) if block else c4_task.BLOCK)


def test_metamath_prompt():
    assert metamath_task.PROMPT.format(instruction="Why?") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhy?\n\n### Response: Let's think step by step."
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so. The answer is: 18", 18),
        ("The answer is: 1/4. The answer is: 7/2", 4),
        ("The answer is: $1,200", 1200),
        ("The answer is: 1,234,567", 1234),
        ("The answer is: -3.6", -4),
        ("The answer is 18", None),
        ("The answer is: none", None),
        ("The answer is: 1/0", 1),
        ("", None),
    ],
)
def test_gsm8k_answer(text, answer):
    assert metamath_task.gsm8k_answer(text) == answer


def test_math_answer():
    assert metamath_task.math_answer("x\nThe answer is: \\frac12.\nQuestion") == "\\frac12"
    assert metamath_task.math_answer("The answer is: 3..") == "3."  # one full stop goes, as in the original
    assert metamath_task.math_answer("\\frac12") is None


def test_finance_answers():
    assert finance_task.numbers("about 12% of 1,200.5 and -3") == [0.12, 1200.5, -3.0]
    assert finance_task.numbers("+.5 1e3 (7.)") == [0.5, 1000.0, 7.0]
    assert finance_task.entities("Steve Jobs (person), Apple (organization)") == [
        ("Jobs", "person"),
        ("Apple", "organization"),
    ]


def test_ner_gives_half_a_credit_each_for_text_and_type():
    doc = {"answer": "Steve Jobs (person), Apple (organization)"}
    assert finance_task.score_ner(doc, ["Jobs (location)"]) == {"score": pytest.approx(1 / 3), "strict_f1": 0.0}


def test_ner_lets_a_prediction_be_taken_again_as_nereval_does():
    two = {"answer": "Ann Lee (person), Bo Poe (person)"}
    assert finance_task.score_ner(two, [two["answer"]]) == {"score": 0.75, "strict_f1": 1.0}
    twice = {"answer": "Lender (person), Lender (person)"}  # one entity for the parser
    assert finance_task.score_ner(twice, ["Lender (person)"]) == {"score": 1.0, "strict_f1": 1.0}


def test_convfinqa_takes_any_number_of_the_first_line():
    doc = {"answer": "0.14"}
    assert finance_task.score_convfinqa(doc, ["it is 14% of 3\n7"])["score"] == 1
    assert finance_task.score_convfinqa(doc, ["3\n0.14"])["score"] == 0
    assert finance_task.score_convfinqa({"answer": "yes"}, [" yes"]) == {"score": 0.0, "close": 1.0}
    assert finance_task.score_convfinqa(doc, [" 0.149"]) == {"score": 1.0, "close": 0.0}


def test_local_templates():
    question = "It worked . Question: what is the role of this sentence in an abstract? Answer:"
    assert biomed_task.role_question("It worked .") == question
    row = {"News": "gold falls"}
    asked = 'Headline: "gold falls" Now answer this question: Does the news headline talk about price going up?'
    assert finance_local._headline(row, finance_local.QUESTIONS["Price Direction Up"]) == asked


@pytest.mark.parametrize(
    ("score", "doc"),
    [
        (finance_task.score_convfinqa, {"answer": "0.14"}),
        (finance_task.score_ner, {"answer": "Ann Lee (person)"}),
        (metamath_task.score_gsm8k, {"answer": "18"}),
        (metamath_task.score_math, {"answer": "\\frac12"}),
        (uuid_task.score, {"key": "a1", "value": "b2"}),
    ],
)
def test_whatever_a_model_writes_is_scored(score, doc):
    """An untouched model repeats itself without end: `.2019.000`, `5%%%...`, `{{{...`."""
    generator = random.Random(0)
    words = (
        "The answer is: ",
        "\\frac",
        "\\boxed{",
        "\\sqrt",
        "\\text{ ",
        "(person)",
        "1e999",
        ".2019.000",
        "9" * 400,
        "%" * 400,
    )
    pieces = [*words, *"0123456789.,,..%%--++eE/{}()$ \n²٣"]
    texts = ["".join(generator.choices(pieces, k=generator.randint(0, 40))) for _ in range(1000)]
    for text in ["", *pieces, *texts]:
        for said in (text, "The answer is: " + text):
            assert all(0 <= value <= 1 for value in score(doc, [said]).values()), said


def test_numbers_that_models_make():
    assert finance_task.numbers("in .2019.000 and 5%%") == [0.2019, 0.0, 0.05]


@pytest.mark.parametrize(
    "text", ["A B-PER\n\nLund B-LOC\n", "A B-PER\r\n\r\nLund B-LOC\r\n", "A B-PER\n\n \nLund B-LOC\n\n"]
)
def test_sentences_of_conll_files_are_apart_by_blank_lines_of_any_form(tmp_path, text):
    path = tmp_path / "x.conll"
    path.write_bytes(text.encode())
    assert [answer for _, answer in finance_local._named_entities([path])] == ["A (person)", "Lund (location)"]
    assert [record.row["text"] for record in SETS["ner"].rows(path)] == ["A", "Lund"]
