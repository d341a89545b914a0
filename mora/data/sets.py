"""The evaluation sets, each described once: training compares its rows with their questions, and evaluation scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mora.errors import DataError, MissingData

from .files import read_cells, read_json, read_rows, read_text, record_of
from .records import Record, field_error

LETTERS = ["A", "B", "C", "D"]  # the options of a question of MMLU


@dataclass(frozen=True)
class Hub:
    """The place of a set on the Hugging Face Hub.

    Attributes:
        id: The set's OWNER/NAME.
        configs: The configurations that `datasets` loads, one after the other.
        files: A glob of the files of the scored split, for sets that training rows are compared with.
        revision: A branch or commit.
    """

    id: str
    configs: tuple[str | None, ...] = (None,)
    files: str = ""
    revision: str = "main"


@dataclass(frozen=True)
class EvaluationSet:
    """A public set of questions with known answers.

    Attributes:
        licence: As its publishers state it.
        files: Split -> globs below the data folder (`MORA_DATA_DIR`). A split is there if each of its globs matches.
        fields: The fields that every row must have.
        scored: The split that is scored.
        questions: The fields of a scored row whose text should not be trained on; `doc.text` is `text` inside `doc`.
        hub: Where the set comes from if there are no local files; None if only local files are read.
        export: Split -> a file of rows in the Hub's form, which is read instead of `files`.
        rows: Reads the rows of a local file, or of one of `hub.files`.
    """

    licence: str
    files: Mapping[str, tuple[str, ...]]
    fields: tuple[str, ...] = ()
    scored: str = "test"
    questions: tuple[str, ...] = ()
    hub: Hub | None = None
    export: Mapping[str, str] = field(default_factory=dict)
    rows: Callable[[Path], Iterator[Record]] = read_rows

    def local(self, split: str, folder: Path | None) -> list[Path]:
        """Return the files of a split in the data folder, in order; an empty list unless all are there."""
        if folder is None:
            return []
        matched = [sorted(folder.glob(pattern)) for pattern in self.files[split]]
        if all(matched):
            return [path for paths in matched for path in paths]
        export = folder / self.export.get(split, "")
        return [export] if export.is_file() else []

    def required(self, split: str, folder: Path) -> list[Path]:
        """Return the files of a split in the data folder, in order.

        Raises:
            MissingData: One of them is not there.
        """
        for pattern in self.files[split]:
            if not any(folder.glob(pattern)):
                raise MissingData(
                    f"{folder / pattern} does not exist: put the file there, or set MORA_DATA_DIR (--data-dir of `mora "
                    f"evaluate`) to the folder that holds {pattern}"
                )
        return self.local(split, folder)


def subject_of(path: Path) -> str:
    """Return the subject of a file of MMLU: `anatomy` for `anatomy_test.csv`."""
    return path.stem.rpartition("_")[0]


def _mmlu(path: Path) -> Iterator[Record]:
    """Yield MMLU's rows in the Hub's form. MMLU's own files have no header, and a letter as the answer."""
    if path.suffix != ".csv":
        yield from read_rows(path)
        return
    for where, cells in read_cells(path):
        if len(cells) != 6:
            raise DataError(f"{where}: {len(cells)} fields, expected 6: question, four options and a letter A to D")
        if cells[5] not in LETTERS:
            raise DataError(f"{where}: the answer is {cells[5]!r:.40}, expected a letter A to D")
        row = {
            "question": cells[0],
            "choices": cells[1:5],
            "answer": LETTERS.index(cells[5]),
            "subject": subject_of(path),
        }
        yield Record(where, row)


def _by_key(path: Path) -> Iterator[Record]:
    """Yield the rows of a JSON object whose keys are the rows' ids."""
    whole = record_of(str(path), read_json(path))
    for key, row in whole.row.items():
        if not isinstance(row, dict):
            raise field_error(whole, key, "an object with fields")
        yield Record(f"{path}, {key}", row)


def _pubmedqa(path: Path) -> Iterator[Record]:
    """Yield PubMedQA's rows in the form of its own file. The Hub's parquet files have only the questions."""
    if path.suffix == ".json":
        yield from _by_key(path)
        return
    for record in read_rows(path):
        context = record_of(f"{record.where}: field 'context'", record.row.get("context"))
        yield Record(record.where, {"QUESTION": record.row.get("question"), "CONTEXTS": context.row.get("contexts")})


def _conversations(path: Path) -> Iterator[Record]:
    """Yield the rows of ConvFinQA, which the field `dev` of a JSON object lists."""
    whole = record_of(str(path), read_json(path))
    rows = whole.row.get("dev")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise field_error(whole, "dev", "a list of objects with fields")
    for i, row in enumerate(rows):
        yield Record(f"{path}, dev[{i}]", row)


def _conll(path: Path) -> Iterator[Record]:
    """Yield the sentences of a CoNLL file as `text`, `words` and `tags` (the last column). A blank line ends a sentence."""
    words: list[str] = []
    tags: list[str] = []
    columns = 0
    for number, line in enumerate([*read_text(path).splitlines(), ""], 1):
        cells = line.split()
        if cells:
            columns = columns or max(2, len(cells))
            if len(cells) != columns:
                raise DataError(f"{path}:{number}: is {line!r:.40}, expected a word and its tags, {columns} fields")
            if cells[0] != "-DOCSTART-":
                words.append(cells[0])
                tags.append(cells[-1])
            continue
        if words:
            yield Record(f"{path}:{number}", {"text": " ".join(words), "words": words, "tags": tags})
        words, tags = [], []


def _sentences(path: Path) -> Iterator[Record]:
    """Yield the sentences of NICTA-PIBOSO as `abstract`, `role` and `sentence`: `###id`, then lines `role<TAB>sentence`."""
    abstract = ""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where = f"{path}:{number}"
        if line.startswith("###"):
            abstract = line
        elif line.strip():
            role, _, sentence = line.partition("\t")
            yield Record(where, {"abstract": abstract, "role": role, "sentence": sentence})


def _adaptllm(owner: str, name: str, *fields: str) -> EvaluationSet:
    """Return the description of a set whose prompts AdaptLLM has filled."""
    return EvaluationSet(
        licence="not stated by AdaptLLM",
        files={"test": (f"adaptllm/{name}.jsonl",)},
        fields=("input", *fields),
        hub=Hub(f"AdaptLLM/{owner}", (name,)),
    )


_MIT = "MIT"
_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)
SETS = {
    "gsm8k": EvaluationSet(
        licence=_MIT,
        files={"train": ("gsm8k/train.jsonl",), "test": ("gsm8k/test.jsonl",)},
        fields=("question", "answer"),
        questions=("question",),
        hub=Hub("openai/gsm8k", ("main",), "main/test*.parquet"),
    ),
    "math": EvaluationSet(
        licence=_MIT,
        files={"train": ("math/train.jsonl",), "test": ("math/test.jsonl",)},
        fields=("problem", "solution"),
        questions=("problem",),
        hub=Hub("EleutherAI/hendrycks_math", _SUBJECTS, "*/test*.parquet"),
    ),
    "math500": EvaluationSet(
        licence=_MIT,
        files={"test": ("math/math500_test.jsonl",)},
        fields=("problem", "solution"),
        hub=Hub("HuggingFaceH4/MATH-500"),
    ),
    "mmlu": EvaluationSet(
        licence=_MIT,
        files={"dev": ("mmlu/dev/*_dev.csv",), "test": ("mmlu/test/*_test.csv",)},
        fields=("question", "subject", "choices", "answer"),
        questions=("question",),
        hub=Hub("cais/mmlu", ("all",), "all/test*.parquet"),
        export={"dev": "mmlu/dev.jsonl", "test": "mmlu/test.jsonl"},
        rows=_mmlu,
    ),
    "c4": EvaluationSet(
        licence="ODC-BY",
        files={"validation": ("c4/validation.jsonl.zst",)},
        fields=("text",),
        scored="validation",
        hub=Hub("allenai/c4", ("en",)),
        export={"validation": "c4/validation.jsonl"},
    ),
    "pretrain_text": EvaluationSet(
        licence="that of its texts: public domain, CC BY-SA",
        files={"validation": ("pretrain_text/validation.jsonl.zst",)},
        fields=("text",),
        scored="validation",
    ),
    "adaptllm_pubmedqa": _adaptllm("medicine-tasks", "PubMedQA", "options", "gold_index"),
    "adaptllm_usmle": _adaptllm("medicine-tasks", "USMLE", "options", "gold_index"),
    "adaptllm_rct": _adaptllm("medicine-tasks", "RCT", "options", "gold_index"),
    "adaptllm_fpb": _adaptllm("finance-tasks", "FPB", "options", "gold_index"),
    "adaptllm_fiqa_sa": _adaptllm("finance-tasks", "FiQA_SA", "options", "gold_index"),
    "adaptllm_headline": _adaptllm("finance-tasks", "Headline", "options", "gold_index", "class_id"),
    "adaptllm_ner": _adaptllm("finance-tasks", "NER", "label"),
    "adaptllm_convfinqa": _adaptllm("finance-tasks", "ConvFinQA", "label"),
    "pubmedqa": EvaluationSet(
        licence=_MIT,
        files={"test": ("pubmedqa/ori_pqal.json",)},
        questions=("QUESTION", "CONTEXTS"),
        hub=Hub("qiaojin/PubMedQA", ("pqa_labeled",), "pqa_labeled/*.parquet"),
        rows=_pubmedqa,
    ),
    "piboso": EvaluationSet(
        licence="not stated",
        files={"train": ("nicta_piboso/train_clean.txt",), "test": ("nicta_piboso/test_clean.txt",)},
        rows=_sentences,
    ),
    "fpb": EvaluationSet(
        licence="CC BY-NC-SA 3.0",
        files={"all": ("fpb/all-data.csv",)},
        fields=("label", "news"),
        scored="all",
        questions=("news",),
        rows=partial(read_rows, encoding="latin-1"),
    ),
    "headline": EvaluationSet(
        licence="not stated",
        files={"all": ("headline/gold-dataset-sinha-khandait.csv",)},
        fields=("News",),
        scored="all",
        questions=("News",),
        rows=partial(read_rows, delimiter="\t"),
    ),
    "fiqa_sa": EvaluationSet(
        licence="not stated",
        files={
            split: tuple(f"fiqa_sa/task1_{kind}_ABSA_{split}.json" for kind in ("headline", "post"))
            for split in ("train", "test")
        },
        questions=("sentence",),
        rows=_by_key,
    ),
    "ner": EvaluationSet(
        licence="CC BY 3.0",
        files={"train": ("fin_ner/FIN5_train.conll",), "test": ("fin_ner/FIN3_test.conll",)},
        questions=("text",),
        rows=_conll,
    ),
    "convfinqa": EvaluationSet(
        licence=_MIT,
        files={"dev": ("convfinqa/dev.json",)},
        scored="dev",
        questions=("doc.pre_text", "doc.post_text"),
        rows=_conversations,
    ),
}
