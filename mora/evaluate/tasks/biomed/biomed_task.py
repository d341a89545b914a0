"""PubMedQA, USMLE and RCT: AdaptLLM's filled prompts, or our own filling of raw local records."""

from __future__ import annotations

import random
from typing import Any

import datasets

from mora.data.files import read_text
from mora.evaluate.choices import adaptllm_doc, as_test_split
from mora.evaluate.records import DataError, Source, field_error, keyed, raw_folder, require_at_least, rows, text, texts

DECISIONS = ["No", "Maybe", "Yes"]
ROLES = ["background", "population", "intervention", "outcome", "study design", "other"]
SHOTS_A_ROLE = 2


def load_adapt(name: str, data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """AdaptLLM's rows: the prompt is filled, demonstrations included."""
    fields = ("input", "options", "gold_index")
    records = rows(Source(f"adaptllm/{name}.jsonl", fields, "AdaptLLM/medicine-tasks", name), data_dir)
    return as_test_split([adaptllm_doc(record) for record in records])


def load_pubmedqa_local(data_dir: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """PubMedQA-L's 1,000 questions from `pubmedqa/ori_pqal.json`."""
    docs = []
    for record in keyed(raw_folder(data_dir) / "pubmedqa/ori_pqal.json"):
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
    """Roles of the sentences of 200 abstracts (NICTA-PIBOSO), two training sentences of each role before each."""
    folder = raw_folder(data_dir) / "nicta_piboso"
    train: dict[str, list[str]] = {}
    for _abstract, role, sentence in _sentences(folder / "train_clean.txt"):
        train.setdefault(role, []).append(sentence)
    for role in ROLES:
        require_at_least(train.get(role, []), SHOTS_A_ROLE, f"{folder / 'train_clean.txt'}, role {role!r}")
    docs = []
    for abstract, role, sentence in _sentences(folder / "test_clean.txt"):
        rng = random.Random(sentence)
        shots = [(s, r) for r in ROLES for s in rng.sample(train[r], SHOTS_A_ROLE)]
        rng.shuffle(shots)
        prompt = "".join(f"{role_question(s)} {r}\n\n" for s, r in shots) + role_question(sentence)
        docs.append({"prompt": prompt, "options": ROLES, "gold": ROLES.index(role), "cluster": abstract})
    return as_test_split(docs)


def role_question(sentence: str) -> str:
    return f"{sentence} Question: what is the role of this sentence in an abstract? Answer:"


def _sentences(path: Any) -> list[tuple[str, str, str]]:
    """(abstract, role, sentence): abstracts begin with `###id`, sentences are `role<TAB>text`."""
    sentences, abstract = [], ""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("###"):
            abstract = line
        elif line.strip():
            role, tab, sentence = line.partition("\t")
            if not tab or role not in ROLES:
                raise DataError(f"{path}:{number}: expected a role ({', '.join(ROLES)}), a tab and a sentence")
            sentences.append((abstract, role, sentence))
    return sentences
