"""Every task with real local records, as lm-eval wires it: gold, constant and empty answers score what they must."""

import hashlib
import json
import math
import os
from collections import Counter, defaultdict

import pytest

from mora.config.data_schema import UuidData
from mora.data.uuid import make_pairs
from mora.evaluate.harness import Settings, task_manager
from mora.train.model import character_tokenizer

pytestmark = pytest.mark.skipif("MORA_DATA_DIR" not in os.environ, reason="MORA_DATA_DIR is not set")

CHOICE = [
    "mmlu_tulu_0shot",
    "mmlu_tulu_5shot",
    "mmlu_plain_0shot",
    "mmlu_plain_5shot",
    "bio_mmlu",
    "biomed_pubmedqa_local",
    "biomed_piboso_local",
    "finance_fpb_local",
    "finance_fiqa_sa_local",
    "finance_headline_local",
]
# What a model that knows the answer writes.
GENERATION = {
    "metamath_gsm8k": " 2 + 2 = 4.\nThe answer is: {}",
    "metamath_math": " So it is.\nThe answer is: {}.\n",
    "metamath_math500": " So it is.\nThe answer is: {}",
    "finance_ner_local": " {}",
    "finance_convfinqa_local": " {}",
    "uuid": "{}",
}

# What gold answers score where the original's reading has an edge: one of MATH's answers ends with a full stop, which
# is taken from the text but not from the answer; four of ConvFinQA's are yes or no; nereval (finance/README.md).
MOST = {"metamath_math": 4999 / 5000, "finance_convfinqa_local": 1486 / 1490, "finance_ner_local": 0.883364}


def loaded(name, tokenizer=None):
    """The task as lm-eval builds it of its YAML, and its documents. Without a tokenizer no shot is dropped for length."""
    pairs = make_pairs(UuidData(kind="uuid", pairs=50, seed=0, loss_on="all"))
    manager = task_manager([name], tokenizer, Settings(1, metadata={"pairs": pairs}))
    task = manager.load([name])["tasks"][name]
    return task, list(task.test_docs())


def scores(task, docs, answers):
    """Every metric of the task, aggregated as its YAML says."""
    items = defaultdict(list)
    for doc, answer in zip(docs, answers, strict=True):
        for metric, value in task.process_results(doc, answer).items():
            items[metric].append(value)
    return {metric: task.aggregation()[metric](values) for metric, values in items.items()}


def preferring(docs, choose):
    """Log-likelihoods under which `choose(doc)` is the best option."""
    return [[(-1.0 if i == choose(doc) else -2.0, False) for i in range(len(doc["options"]))] for doc in docs]


def weighted_f1(gold, said):
    """Of one constant answer: its label's F1, weighted by the label's share."""
    share = Counter(gold)[said] / len(gold)
    return share * 2 * share / (1 + share)


@pytest.mark.parametrize("name", CHOICE)
def test_gold_and_constant_options(name):
    task, docs = loaded(name)
    labels = [doc["options"][doc["gold"]] for doc in docs]
    if name == "biomed_pubmedqa_local":
        assert labels.count("Yes") / len(labels) == 0.552  # as published
    is_f1 = name.startswith("finance")
    assert scores(task, docs, preferring(docs, lambda doc: doc["gold"]))["score"] == 1.0
    for index, option in enumerate(docs[0]["options"]):
        said = scores(task, docs, preferring(docs, lambda doc, index=index: index))
        assert said["acc" if is_f1 else "score"] == pytest.approx(labels.count(option) / len(labels))
        if name == "finance_headline_local":
            groups = defaultdict(list)
            for doc, label in zip(docs, labels, strict=True):
                groups[doc["group"]].append(label)
            by_group = [weighted_f1(gold, option) for gold in groups.values()]
            assert len(by_group) == 7
            assert said["score"] == pytest.approx(sum(by_group) / 7)
        elif is_f1:
            assert said["score"] == pytest.approx(weighted_f1(labels, option))


@pytest.mark.parametrize("name", GENERATION)
def test_gold_constant_and_empty_texts(name):
    task, docs = loaded(name)
    headline = "uuid_char_acc" if name == "uuid" else "score"
    gold = [str(doc["value" if name == "uuid" else "answer"]) for doc in docs]
    said = scores(task, docs, [[GENERATION[name].format(answer)] for answer in gold])
    assert said[headline] == pytest.approx(MOST.get(name, 1.0), abs=1e-6)
    if name in MOST and name != "metamath_math":
        assert said["strict_f1" if "ner" in name else "close"] == 1.0
    assert scores(task, docs, [[""]] * len(docs))[headline] == 0.0
    if name == "finance_ner_local":
        always = scores(task, docs, [[" Borrower (person)"]] * len(docs))
        assert always["score"] == pytest.approx(0.682677, abs=1e-6)  # no less than most of Table 7's
    if name == "metamath_gsm8k":
        always = scores(task, docs, [["The answer is: 5"]] * len(docs))
        assert always == {"score": pytest.approx(gold.count("5") / len(gold)), "answered": 1.0}
        assert scores(task, docs, [["5"]] * len(docs)) == {"score": 0.0, "answered": 0.0}


def test_a_uniform_model_has_its_vocabulary_as_perplexity():
    tokenizer = character_tokenizer()
    task, docs = loaded("c4_perplexity_local", tokenizer)
    lengths = {len(doc["target"].split()) for doc in docs}
    assert lengths == {255}  # a block's first token is not predicted
    said = scores(task, docs, [[(-255 * math.log(len(tokenizer)), False)]] * len(docs))
    assert said["score"] == pytest.approx(len(tokenizer))


@pytest.mark.parametrize(
    ("name", "shots"),
    [("mmlu_tulu_0shot", 0), ("mmlu_tulu_5shot", 5), ("mmlu_plain_5shot", 5), ("bio_mmlu", 0)],
)
def test_shots_of_mmlu_are_the_first_dev_rows_of_the_subject(name, shots):
    task, docs = loaded(name)
    assert {doc["prompt"].count("\nAnswer: ") for doc in docs} == {shots}
    for doc in docs[:: len(docs) // 20]:
        assert f"  {doc['group'].replace('_', ' ')}.\n\n" in doc["prompt"]
        assert doc["prompt"].startswith("<|user|>\n") == doc["prompt"].endswith("<|assistant|>\nThe answer is:")
        assert doc["prompt"].startswith("<|user|>") == name.startswith("mmlu_tulu")
        assert task.doc_to_text(doc) == doc["prompt"]
        assert [task.config.target_delimiter + letter for letter in task.doc_to_choice(doc)] == [" A", " B", " C", " D"]


# Of all prompts, options and answers, so that scores stay comparable: a change here raises the task's version.
FINGERPRINTS = {
    "mmlu_tulu_0shot": "43229e4f2efd7bde",
    "mmlu_tulu_5shot": "7373e4bd51a0346d",
    "mmlu_plain_0shot": "943b6768c6789230",
    "mmlu_plain_5shot": "b4a06d47e408096f",
    "bio_mmlu": "41b6b98a2a6a4b0f",
    "biomed_pubmedqa_local": "4954cce9c9602bf8",
    "biomed_piboso_local": "7b248dc23e2adbbd",
    "finance_fpb_local": "6e1cf34b1e7eadd1",
    "finance_fiqa_sa_local": "5e8725ebdcbdee4a",
    "finance_headline_local": "2f036fb88599573c",
    "metamath_gsm8k": "f867cab7be7f972d",
    "metamath_math": "72c335f09a9fb6d2",
    "metamath_math500": "6a2e41dfed7dcc39",
    "finance_ner_local": "d7ce481dc246c8bc",
    "finance_convfinqa_local": "5ff4abd5fe3ea80f",
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_documents_are_those_of_the_committed_results(name):
    _, docs = loaded(name)
    asked = [[doc["prompt"], doc.get("options"), doc.get("gold", doc.get("answer"))] for doc in docs]
    assert hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16] == FINGERPRINTS[name]
