"""PubMedQA, USMLE and RCT: AdaptLLM's filled prompts, or our own filling of raw local records."""

from __future__ import annotations

import random
from typing import Any

import datasets

from mora.data.sets import SETS
from mora.evaluate.choices import adaptllm_doc, as_test_split
from mora.evaluate.records import Record, field_error, raw_files, read, require_at_least, rows, text, texts

DECISIONS = ["No", "Maybe", "Yes"]
ROLES = ["background", "population", "intervention", "outcome", "study design", "other"]
SHOTS_A_ROLE = 2


def load_adapt(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load AdaptLLM's rows, whose prompts include the demonstrations."""
    return as_test_split([adaptllm_doc(record) for record in rows(SETS[f"adaptllm_{name.lower()}"], data_dir)])


def load_pubmedqa_local(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load PubMedQA-L's 1,000 questions from `pubmedqa/ori_pqal.json`."""
    docs = []
    source = SETS["pubmedqa"]
    for record in read(source, raw_files(source, data_dir)):
        labels, contexts = texts(record, "LABELS"), texts(record, "CONTEXTS")
        if len(labels) != len(contexts):
            raise field_error(record, "LABELS", f"one for each of the {len(contexts)} CONTEXTS")
        decision = text(record, "final_decision").title()
        if decision not in DECISIONS:
            raise field_error(record, "final_decision", "yes, no or maybe")
        article = " ".join(f"({label.title()}) {c}" for label, c in zip(labels, contexts, strict=True))
        prompt = f"Article: {article} Now answer this question: {text(record, 'QUESTION')}"
        docs.append({"prompt": prompt, "options": DECISIONS, "gold": DECISIONS.index(decision)})
    return as_test_split(docs)


def load_piboso_local(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Load the sentences of 200 abstracts (NICTA-PIBOSO) with their roles, after two training sentences of each role."""
    source, train = SETS["piboso"], dict[str, list[str]]()
    files = raw_files(source, data_dir, "train")
    for record in read(source, files):
        train.setdefault(_role(record), []).append(record.row["sentence"])
    for role in ROLES:
        require_at_least(train.get(role, []), SHOTS_A_ROLE, f"{files[0]}, role {role!r}")
    docs = []
    for record in read(source, raw_files(source, data_dir)):
        role, sentence = _role(record), record.row["sentence"]
        rng = random.Random(sentence)
        shots = [(s, r) for r in ROLES for s in rng.sample(train[r], SHOTS_A_ROLE)]
        rng.shuffle(shots)
        prompt = "".join(f"{role_question(s)} {r}\n\n" for s, r in shots) + role_question(sentence)
        docs.append({"prompt": prompt, "options": ROLES, "gold": ROLES.index(role), "cluster": record.row["abstract"]})
    return as_test_split(docs)


def role_question(sentence: str) -> str:
    return f"{sentence} Question: what is the role of this sentence in an abstract? Answer:"


def _role(record: Record) -> str:
    role = record.row["role"]
    if role not in ROLES:
        raise field_error(record, "role", f"a role ({', '.join(ROLES)}), a tab and a sentence")
    return str(role)
