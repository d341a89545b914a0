"""Whole prompts, shots included, of records made up here in the schemas of the public sets.

Word for word in prompts/TASK.txt; in prompts/TASK.ids as SmolLM2's token ids, as they reach the model: a line of the prompt,
then one of each option.
"""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from mora.evaluate.backend import Backend
from mora.evaluate.harness import Settings, evaluate_model
from mora.evaluate.tasks.biomed import biomed_task
from mora.evaluate.tasks.finance import finance_local
from mora.evaluate.tasks.metamath import metamath_task
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
    write(folder / "math/test.jsonl", json.dumps(row))


def usmle(folder):
    row = {"input": "A man, 54, coughs.\nWhat now?", "options": ["Wait", "Give 5 mg", "naïve: swab"], "gold_index": 1}
    write(folder / "adaptllm/USMLE.jsonl", json.dumps(row))


@pytest.mark.parametrize(
    ("name", "records", "load", "answer"),
    [
        ("mmlu_tulu_0shot", mmlu, lambda d: mmlu_task.load(0, True, data_dir=d), "B"),
        ("mmlu_tulu_5shot", mmlu, lambda d: mmlu_task.load(5, True, data_dir=d), "B"),
        ("mmlu_plain_0shot", mmlu, lambda d: mmlu_task.load(0, False, data_dir=d), "B"),
        ("mmlu_plain_5shot", mmlu, lambda d: mmlu_task.load(5, False, data_dir=d), "B"),
        ("metamath_gsm8k", gsm8k, metamath_task.load_gsm8k, "1252"),
        ("metamath_math", math, metamath_task.load_math, "\\frac{3}{4}"),
        ("finance_fpb_local", fpb, finance_local.load_fpb, "negative"),
        ("finance_fiqa_sa_local", fiqa_sa, finance_local.load_fiqa_sa, "neutral"),
        ("finance_headline_local", headline, finance_local.load_headline, "No"),
        ("finance_ner_local", ner, finance_local.load_ner, "Poe (person), Rome (location)"),
        ("finance_convfinqa_local", convfinqa, finance_local.load_convfinqa, "3.0"),
        ("biomed_pubmedqa_local", pubmedqa, biomed_task.load_pubmedqa_local, "Maybe"),
        ("biomed_piboso_local", piboso, biomed_task.load_piboso_local, "outcome"),
        ("biomed_usmle", usmle, lambda d: biomed_task.load_adapt("USMLE", d), "Give 5 mg"),
    ],
)
def test_a_whole_prompt_word_for_word(tmp_path, name, records, load, answer):
    records(tmp_path)
    doc = load(str(tmp_path))["test"][-1]
    assert doc["prompt"] == (GOLDEN / f"{name}.txt").read_text()
    assert (doc["answer"] if "answer" in doc else doc["options"][doc["gold"]]) == answer


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
        ("biomed_usmle", usmle, ["Wait", "Give 5 mg", "naïve: swab"]),
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
