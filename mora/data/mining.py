"""Questions that a text answers in its own words, by AdaptLLM's mining patterns (arXiv:2309.09530, Appendix B)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

PER_KIND = 2  # examples kept of a sub-category, as in AdaptLLM
KEYWORDS = 3  # keywords of a sentence for word-to-text
MOST_PIECES = 100  # the most distinct pieces of such a sentence
DOMAIN_VOCABULARY = 32_000
_MARK = "▁"  # the beginning of a word, in SentencePiece's notation

CONTRADICT = r"No|However|But|On the contrary|In contrast|Whereas"
VERBALISERS = {
    "entail": r"Yes|Therefore|Thus|Accordingly|Hence|For this reason",
    "contradict": CONTRADICT,
    "neutral": r"Maybe|Also|Furthermore|Secondly|Additionally|Moreover|In addition",
    "cause_effect": r"Thus|Therefore|Accordingly|Hence|For this reason",
    "similar": r"In other words|Namely|That is to say|i\.e\.|Scilicet|Similarly|Equally",
    "different": CONTRADICT,
}


@dataclass(frozen=True)
class Example:
    """A mined example. `kind` is its sub-category: a section of reading_templates.yaml, or a relation of NLI."""

    kind: str
    s1: str
    s2: str


def _pair(verbaliser: str, inner: str) -> re.Pattern[str]:
    """Return the pattern of a sentence end, then sentence, verbaliser, comma, sentence; both have 50 characters or more."""
    sentence = rf"[^{inner}]{{50,}}[.!?]+"
    return re.compile(rf"[.!?]+\s+({sentence})\s+(?:{verbaliser})\s*,\s+({sentence})(?=\s)", re.IGNORECASE)


PATTERNS = {
    **{kind: _pair(VERBALISERS[kind], r".!?\n,") for kind in ("entail", "contradict", "neutral", "cause_effect")},
    **{kind: _pair(VERBALISERS[kind], r".!?\n") for kind in ("similar", "different")},
    # The effect and then its cause, in one sentence.
    "effect_cause": re.compile(
        r"[.!?]+\s+([^.!?\n,;]{50,})\s+(?:due to|on account of|owing to)\s+([^.!?\n,;]{50,}[.!?]+)(?=\s)", re.IGNORECASE
    ),
    "definition": re.compile(
        r"(?:^|\s)(\w{10,})(?:\s+is defined as|'s definition is)\s+([^.!?\n]+[.!?]+)", re.IGNORECASE
    ),
    "topic": re.compile(
        r"(?:^|[.!?]\s+)([\w ]{20,}?)(?:\s+(?:was about|talks about|is about)|'s topic is)\s+([^.!?\n]+[.!?]+)",
        re.IGNORECASE,
    ),
}


@dataclass(frozen=True)
class Keywords:
    """The keywords of a domain: long pieces of its own vocabulary that begin a word and that a general one lacks."""

    tokenizer: Tokenizer
    words: frozenset[str]

    def of(self, sentence: str) -> list[str]:
        """Return the sentence's keywords, in order and each once; none if it has more than MOST_PIECES distinct pieces."""
        pieces = self.tokenizer.encode(sentence).tokens
        if len(set(pieces)) > MOST_PIECES:
            return []
        return [piece.removeprefix(_MARK) for piece in dict.fromkeys(pieces) if piece in self.words]


def learn_keywords(texts: Iterable[str], general: Iterable[str]) -> Keywords:
    """Learn a BPE vocabulary from the texts, and return those of its pieces that `general`, another vocabulary, lacks.

    AdaptLLM trains SentencePiece. BPE on words that begin with its mark gives pieces of the same form.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(
        vocab_size=DOMAIN_VOCABULARY, special_tokens=["<unk>"], limit_alphabet=1000, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return keywords_of(tokenizer, general)


def keywords_of(tokenizer: Tokenizer, general: Iterable[str]) -> Keywords:
    """Return the pieces of a domain's tokenizer that make keywords.

    These pieces are not in `general`, begin a word, and have more than 10 characters, including the mark.
    """
    known = {piece.replace("Ġ", _MARK) for piece in general}
    own = (piece for piece in tokenizer.get_vocab() if piece.startswith(_MARK) and len(piece) > 10)
    return Keywords(tokenizer, frozenset(piece for piece in own if piece not in known))


@dataclass
class Mined:
    """The examples mined from a text, by type and in the order of their kinds."""

    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, type_: str, examples: list[Example]) -> None:
        """Add examples of a type."""
        if examples:
            self.examples.setdefault(type_, []).extend(examples)


TYPES = {
    "entail": "nli",
    "contradict": "nli",
    "neutral": "nli",
    "cause_effect": "commonsense",
    "effect_cause": "commonsense",
    "similar": "paraphrase",
    "different": "paraphrase",
    "definition": "text_to_text",
    "topic": "text_to_text",
}


def mine(body: str, found_sentences: list[str], keywords: Keywords, rng: random.Random) -> Mined:
    """Mine a text for examples, at most PER_KIND of each kind, chosen by `rng`."""
    mined = Mined()
    for kind, pattern in PATTERNS.items():
        examples = [Example(kind, first.strip(), _capital(second)) for first, second in pattern.findall(body)]
        rng.shuffle(examples)
        mined.add(TYPES[kind], examples[:PER_KIND])
    mined.add("word_to_text", _word_to_text(found_sentences, keywords, rng))
    return mined


def _word_to_text(found_sentences: list[str], keywords: Keywords, rng: random.Random) -> list[Example]:
    chosen: list[Example] = []
    for sentence in rng.sample(found_sentences, len(found_sentences)):
        words = keywords.of(sentence)
        if len(words) >= KEYWORDS:
            chosen.append(Example("word_to_text", ", ".join(words[:KEYWORDS]), sentence))
        if len(chosen) == PER_KIND:
            break
    return chosen


_ABBREVIATION = re.compile(
    r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|etc|al|Fig|Figs|No|Inc|Corp|Co|Ltd|approx|ca|e\.g|i\.e)|\b[A-Z])\.$"
)
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(\[])")


def sentences(text: str) -> list[str]:
    """Split a text after the ends of sentences and at line breaks, but not after common abbreviations and initials."""
    parts = []
    for line in text.splitlines():
        begin = ""
        for part in _END.split(line):
            begin = f"{begin} {part}" if begin else part
            if not _ABBREVIATION.search(begin):
                parts.append(begin.strip())
                begin = ""
        if begin:
            parts.append(begin.strip())
    return [sentence for sentence in parts if sentence]


def _capital(sentence: str) -> str:
    sentence = sentence.strip()
    return sentence[:1].upper() + sentence[1:]
