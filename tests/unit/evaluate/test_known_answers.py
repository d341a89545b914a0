"""Every task, as lm-eval wires it: gold, constant and empty answers score what they must. AdaptLLM's sets are made up."""

import functools
import hashlib
import json
import math
import os
from collections import Counter, defaultdict

import pytest

from mora.config.data_schema import UuidData
from mora.data.uuid import make_pairs
from mora.evaluate.choices import LogLikelihood
from mora.evaluate.harness import Settings, task_manager
from mora.models.tokenizers import character_tokenizer

real = pytest.mark.skipif("MORA_DATA_DIR" not in os.environ, reason="MORA_DATA_DIR is not set")

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


# Rows as AdaptLLM's files have them, prompts filled: options and the right one, or a label.
ADAPTLLM_CHOICE = {
    "biomed_pubmedqa": ("PubMedQA", ["No", "Maybe", "Yes"], [2, 0, 1, 2]),
    "biomed_usmle": ("USMLE", ["Give aspirin now", "Wait", "Take a swab", "Operate at once"], [3, 1, 0, 1]),
    "biomed_rct": ("RCT", ["background", "conclusions", "methods", "objective", "results"], [4, 0, 3, 4]),
    "finance_fpb": ("FPB", ["negative", "neutral", "positive"], [1, 1, 2, 0]),
    "finance_fiqa_sa": ("FiQA_SA", ["negative", "neutral", "positive"], [2, 0, 2, 1]),
    "finance_headline": ("Headline", ["No", "Yes"], [0, 1, 1, 0]),
}
ADAPTLLM_TEXT = {
    "finance_ner": ("NER", ["Ann Lee (person), Lund (location)", "Lender (organization)"]),
    "finance_convfinqa": ("ConvFinQA", ["0.14", "-1,200.5", "12%", ["25587", "25587.0"], 4.0]),
}


LIKELIHOOD = {"metamath_gsm8k_gold": (1319, 1290), "metamath_math_gold": (5000, 1200)}  # questions; answers that fit


def test_every_task_has_known_answers():
    """But for C4 itself, whose documents are scored as those of its stand-in are."""
    tasks = set(task_manager([], None, Settings(1)).all_subtasks)
    here = [*CHOICE, *GENERATION, *ADAPTLLM_CHOICE, *ADAPTLLM_TEXT, *LIKELIHOOD, "c4_perplexity_local", "c4_perplexity"]
    assert sorted(here) == sorted(tasks)


def write_adaptllm(folder, name, rows):
    (folder / "adaptllm").mkdir(exist_ok=True)
    (folder / f"adaptllm/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@functools.cache
def loaded(name, tokenizer=None, data_dir=None):
    """The task as lm-eval builds it of its YAML, and its documents, which nobody changes: built once for all tests.

    Without a tokenizer no shot is dropped for length.
    """
    pairs = make_pairs(UuidData(kind="uuid", pairs=50, seed=0, loss_on="all"))
    manager = task_manager([name], tokenizer, Settings(1, data_dir=data_dir, metadata={"pairs": pairs}))
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


@real
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


@real
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


@pytest.mark.parametrize("name", ADAPTLLM_CHOICE)
def test_gold_and_constant_options_of_adaptllms_rows(name, tmp_path):
    file, options, gold = ADAPTLLM_CHOICE[name]
    prompts = [f'A shot. Yes\n\nHeadline: "gold {i // 2}" Now answer: {i}?' for i in range(len(gold))]
    rows = [
        {"id": i, "input": p, "options": options, "gold_index": g}
        for i, (p, g) in enumerate(zip(prompts, gold, strict=True))
    ]
    write_adaptllm(tmp_path, file, [row | {"class_id": row["id"] % 2} for row in rows])
    task, docs = loaded(name, data_dir=str(tmp_path))
    assert [task.doc_to_text(doc) for doc in docs] == prompts
    assert [task.config.target_delimiter + option for option in task.doc_to_choice(docs[0])] == [
        f" {o}" for o in options
    ]
    accuracy = "acc" if name.startswith("finance") else "score"
    right = scores(task, docs, preferring(docs, lambda doc: doc["gold"]))
    assert right["score"] == right[accuracy] == right["acc_sum"] == 1.0
    for index in range(len(options)):
        said = scores(task, docs, preferring(docs, lambda doc, index=index: index))
        assert said[accuracy] == said["acc_sum"] == gold.count(index) / len(gold)
        labels = [options[g] for g in gold]
        if name == "finance_headline":  # the mean over the two kinds of question
            by_kind = [weighted_f1(labels[kind::2], options[index]) for kind in (0, 1)]
            assert said["score"] == pytest.approx(sum(by_kind) / 2)
        elif accuracy == "acc":
            assert said["score"] == pytest.approx(weighted_f1(labels, options[index]))


@pytest.mark.parametrize("name", ADAPTLLM_TEXT)
def test_gold_and_empty_texts_of_adaptllms_rows(name, tmp_path):
    file, labels = ADAPTLLM_TEXT[name]
    prompts = [f"A shot. So\n\nWhat is {i}?" for i in range(len(labels))]
    write_adaptllm(
        tmp_path,
        file,
        [{"id": i, "input": p, "label": x} for i, (p, x) in enumerate(zip(prompts, labels, strict=True))],
    )
    task, docs = loaded(name, data_dir=str(tmp_path))
    assert [task.doc_to_text(doc) for doc in docs] == prompts
    gold = [str(label[0] if isinstance(label, list) else label) for label in labels]
    assert [doc["answer"] for doc in docs] == gold
    right = scores(task, docs, [[f" {answer}\nAnd so on"] for answer in gold])
    assert set(right.values()) == {1.0}
    assert set(scores(task, docs, [[""]] * len(docs)).values()) == {0.0}


@real
@pytest.mark.parametrize("name", LIKELIHOOD)
def test_gold_answers_are_training_rows_and_score_nats_a_token(name):
    n, fitting = LIKELIHOOD[name]
    tokenizer = character_tokenizer()  # whose window of 2,048 is one of characters
    task, docs = loaded(name)
    assert len(docs) == n
    assert all(task.doc_to_text(doc).endswith("### Response:") for doc in docs)
    assert all("\nThe answer is: " in task.doc_to_target(doc) for doc in docs)
    answers = [[(LogLikelihood(-2.0 * len(doc["answer"]), len(doc["answer"])), False)] for doc in docs]
    nats = sum(2.0 * len(doc["answer"]) for doc in docs) / n
    assert scores(task, docs, answers) == {"score": 2.0, "nats": pytest.approx(nats)}
    _, short = loaded(name, tokenizer)
    assert fitting < len(short) <= n
    longest = sorted((doc["prompt"] + doc["answer"] for doc in short), key=len)[-20:]
    assert max(len(tokenizer(text)["input_ids"]) for text in longest) <= 2048


@real
def test_a_uniform_model_has_its_vocabulary_as_perplexity():
    tokenizer = character_tokenizer()
    task, docs = loaded("c4_perplexity_local", tokenizer)
    lengths = {len(doc["target"].split()) for doc in docs}
    assert lengths == {255}  # a block's first token is not predicted
    said = scores(task, docs, [[(-255 * math.log(len(tokenizer)), False)]] * len(docs))
    assert said["score"] == pytest.approx(len(tokenizer))


@real
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


@real
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_documents_are_those_of_the_committed_results(name):
    _, docs = loaded(name)
    asked = [[doc["prompt"], doc.get("options"), doc.get("gold", doc.get("answer"))] for doc in docs]
    assert hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16] == FINGERPRINTS[name]
