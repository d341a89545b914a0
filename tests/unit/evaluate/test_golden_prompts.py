"""Whole prompts, shots included, of records made up here in the schemas of the public sets.

Word for word in prompts/TASK.txt, of every task; in prompts/TASK.ids as SmolLM2's token ids, as they reach the model: a line
of the prompt, then one of each option.
"""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from mora.evaluate.backend import Backend
from mora.evaluate.harness import Settings, evaluate_model, task_manager
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.finance import finance_local
from mora.evaluate.tasks.mmlu import mmlu_task

GOLDEN = Path(__file__).with_name("prompts")
COLOURS = ["red", "green", "blue", "grey", "pink", "brown"]


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


def mmlu(folder):
    """Six dev rows, of which five are shown; one option in quotes with a comma and a line break."""
    dev = [f"Which is {colour}?,{','.join(COLOURS[:4])},{'ABCD'[i % 4]}" for i, colour in enumerate(COLOURS)]
    write(folder / "mmlu/dev/high_school_art_dev.csv", "\n".join(dev) + "\n")
    write(
        folder / "mmlu/test/high_school_art_test.csv",
        '"What, if mixed,\ngives green?",red,"blue, yellow",grey,pink,B\n',
    )


def bio_mmlu(folder):
    write(folder / "mmlu/test/anatomy_test.csv", "Which bone?,tibia,ulna,rib,none,C\n")


def fpb(folder):
    labels = ["negative", "neutral", "positive"]
    rows = "".join(f'{labels[i % 3]},"Sales of {c} cloth rose, by £{i}."\n' for i, c in enumerate(COLOURS))
    write(folder / "fpb/all-data.csv", "label,news\n" + rows, "latin-1")


def fiqa_sa(folder):
    def row(i):
        score = ["0.5", "-0.5", "0.05"][i % 3]
        return {"sentence": f"${COLOURS[i]} up", "info": [{"target": COLOURS[i].title(), "sentiment_score": score}]}

    train, test = {str(i): row(i) for i in range(5)}, {"5": row(5)}
    for split, headlines in (("train", train), ("test", test)):
        write(folder / f"fiqa_sa/task1_headline_ABSA_{split}.json", json.dumps(headlines))
        write(folder / f"fiqa_sa/task1_post_ABSA_{split}.json", "{}")


def headline(folder):
    names = ["News", *finance_local.QUESTIONS]
    rows = [[f"{c} gold rises", str(i % 2), *"00100", ["none", "positive"][i % 2]] for i, c in enumerate(COLOURS)]
    write(folder / "headline/gold-dataset-sinha-khandait.csv", "".join("\t".join(row) + "\n" for row in [names, *rows]))


def ner(folder):
    def sentence(number):
        lines = [f"Lender{number} NN B I-ORG", "and NN O O", "Ann NN B I-PER", "Lee NN B I-PER", ". . O O"]
        return "\n".join(lines) + "\n\n"

    write(folder / "fin_ner/FIN5_train.conll", "-DOCSTART- -X- O O\n\n" + "".join(map(sentence, range(20))))
    unnamed = "Nobody NN O O\n\nLatin NN B I-MISC\n\n"
    write(folder / "fin_ner/FIN3_test.conll", unnamed + "Ms NN O O\nPoe NN B I-PER\nof NN O O\nRome NN B I-LOC\n\n")


def convfinqa(folder):
    doc = {"pre_text": "In thousands .", "table": {"2008": {"sales": 4.0, "cost": 3.0}}, "post_text": "Audited ."}
    talk = {"conv_questions": ["what were sales?", "and cost?"], "executed_answers": [4.0, 3.0]}
    write(folder / "convfinqa/dev.json", json.dumps({"dev": [{"id": "a", "doc": doc, "dialogue": talk}]}))


def pubmedqa(folder):
    row = {"QUESTION": "Does it?", "CONTEXTS": ["We asked.", "It did."], "LABELS": ["BACKGROUND", "RESULTS"]}
    write(folder / "pubmedqa/ori_pqal.json", json.dumps({"1": {**row, "final_decision": "maybe"}}))


def piboso(folder):
    roles = "".join(f"{role}\tThe {role} , {i} .\n" for role in biomed_task.ROLES for i in (1, 2))
    write(folder / "nicta_piboso/train_clean.txt", f"###1\n{roles}")
    write(folder / "nicta_piboso/test_clean.txt", "###2\noutcome\tIt worked .\n")


def gsm8k(folder):
    row = {"question": "Ann has 1,250 g.\nAnd Bo £2?", "answer": "So <<1+1=2>>2.\n#### 1,252"}
    write(folder / "gsm8k/test.jsonl", json.dumps(row))


def math(folder):
    row = {"problem": "What is $\\frac{1}{2}+\\frac14$?", "solution": "It is $\\boxed{\\frac{3}{4}}$."}
    for name in ("test", "math500_test"):
        write(folder / f"math/{name}.jsonl", json.dumps(row))


def adaptllm(folder):
    """One row, of each set: the prompts are filled."""
    row = {"input": "A man, 54, coughs.\nWhat now?", "options": ["Wait", "Give 5 mg", "naïve: swab"], "gold_index": 1}
    for name in ("PubMedQA", "USMLE", "RCT", "ConvFinQA", "FiQA_SA", "Headline", "NER", "FPB"):
        write(folder / f"adaptllm/{name}.jsonl", json.dumps(row | {"class_id": 0, "label": "Give 5 mg"}))


def nothing(folder):
    """UUIDs are those of the run."""


PAIRS = [("0d9c3a5e-6f1b-4c2d-8e7a-1b2c3d4e5f60", "7a6b5c4d-3e2f-4a1b-9c8d-0e1f2a3b4c5d")]
ADAPTLLM_ROWS = [
    *("biomed_pubmedqa", "biomed_usmle", "biomed_rct", "finance_convfinqa", "finance_fiqa_sa", "finance_headline"),
    *("finance_ner", "finance_fpb"),
]
RECORDS = {  # by task, with the answer to the last prompt
    **dict.fromkeys(["mmlu_tulu_0shot", "mmlu_tulu_5shot", "mmlu_plain_0shot", "mmlu_plain_5shot"], (mmlu, "B")),
    "bio_mmlu": (bio_mmlu, "C"),
    "metamath_gsm8k": (gsm8k, "1252"),
    "metamath_gsm8k_gold": (gsm8k, "So 2.\n#### 1,252\nThe answer is: 1,252"),
    **dict.fromkeys(["metamath_math", "metamath_math500"], (math, "\\frac{3}{4}")),
    "metamath_math_gold": (math, "It is $\\boxed{\\frac{3}{4}}$.\nThe answer is: \\frac{3}{4}"),
    "finance_fpb_local": (fpb, "negative"),
    "finance_fiqa_sa_local": (fiqa_sa, "neutral"),
    "finance_headline_local": (headline, "No"),
    "finance_ner_local": (ner, "Poe (person), Rome (location)"),
    "finance_convfinqa_local": (convfinqa, "3.0"),
    "biomed_pubmedqa_local": (pubmedqa, "Maybe"),
    "biomed_piboso_local": (piboso, "outcome"),
    **dict.fromkeys(ADAPTLLM_ROWS, (adaptllm, "Give 5 mg")),
    "uuid": (nothing, PAIRS[0][1]),
}
WITH_THE_PROMPT_OF = dict.fromkeys(ADAPTLLM_ROWS, "biomed_usmle") | {"metamath_math500": "metamath_math"}
WITHOUT_A_PROMPT = {"c4_perplexity", "c4_perplexity_local"}  # blocks of text


def test_every_task_has_a_golden_prompt():
    tasks = set(task_manager([], None, Settings(1)).all_subtasks)
    assert RECORDS.keys() == tasks - WITHOUT_A_PROMPT
    own = RECORDS.keys() - WITH_THE_PROMPT_OF.keys() | {*WITH_THE_PROMPT_OF.values()}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == own


@pytest.mark.parametrize("name", RECORDS)
def test_a_whole_prompt_word_for_word(tmp_path, name):
    """That of the last document, as lm-eval makes it by the task's file."""
    records, answer = RECORDS[name]
    records(tmp_path)
    settings = Settings(1, data_dir=str(tmp_path), metadata={"pairs": PAIRS})
    task = task_manager([name], None, settings).load([name])["tasks"][name]
    doc = list(task.test_docs())[-1]
    assert task.doc_to_text(doc) == (GOLDEN / f"{WITH_THE_PROMPT_OF.get(name, name)}.txt").read_text()
    target = task.doc_to_target(doc)
    assert (task.doc_to_choice(doc)[target] if isinstance(target, int) else target) == answer


@pytest.fixture
def tiny_smollm2(smollm2):
    """A tiny model of SmolLM2's vocabulary, and its tokenizer."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(smollm2), **sizes)), smollm2


@pytest.mark.parametrize(
    ("name", "records", "options"),
    [
        ("mmlu_tulu_0shot", mmlu, mmlu_task.LETTERS),
        ("mmlu_tulu_5shot", mmlu, mmlu_task.LETTERS),
        ("mmlu_plain_0shot", mmlu, mmlu_task.LETTERS),
        ("mmlu_plain_5shot", mmlu, mmlu_task.LETTERS),
        ("metamath_gsm8k", gsm8k, []),
        ("metamath_math", math, []),
        ("biomed_usmle", adaptllm, ["Wait", "Give 5 mg", "naïve: swab"]),
        ("biomed_pubmedqa_local", pubmedqa, biomed_task.DECISIONS),
        ("finance_fpb_local", fpb, finance_local.SENTIMENTS),
        ("finance_ner_local", ner, []),
    ],
)
def test_a_whole_prompts_token_ids(tmp_path, monkeypatch, tiny_smollm2, name, records, options):
    """Those of the last document, caught where they would enter the model."""
    asked = []

    def loglikelihoods(self, requests, **_):
        (_, context, _), *_ = last = requests[-len(options) :]
        asked.extend([context, *(continuation for _, _, continuation in last)])
        return [(-1.0, False)] * len(requests)

    def generate(self, context, max_length, stop, attention_mask, **_):
        asked.append([int(i) for i, kept in zip(context[-1], attention_mask[-1], strict=True) if kept])
        return context

    monkeypatch.setattr(Backend, "_loglikelihood_tokens", loglikelihoods)
    monkeypatch.setattr(Backend, "_model_generate", generate)
    records(tmp_path)
    evaluate_model(*tiny_smollm2, [name], Settings(batch_size=1, data_dir=str(tmp_path)))
    prompt, *continuations = asked if options else asked[-1:]
    assert tiny_smollm2[1].decode(prompt) == (GOLDEN / f"{name}.txt").read_text()
    assert [tiny_smollm2[1].decode(ids) for ids in continuations] == [f" {option}" for option in options]
    assert [" ".join(map(str, ids)) for ids in (prompt, *continuations)] == (
        GOLDEN / f"{name}.ids"
    ).read_text().splitlines()
