"""What is mined from a fixed document, and what the document becomes."""

import random
import re
from pathlib import Path

import pytest

from mora.data import mining, reading_comprehension
from mora.data.reading_comprehension import transform

FILES = Path(__file__).with_name("reading_comprehension")
DOCUMENT = (FILES / "document.txt").read_text()
BODY = DOCUMENT.partition("\n")[2]
TRIAL = "The trial compared insulin glargine with metformin in two hundred elderly patients."
ARMS = "The difference between the two treatment arms did not reach statistical significance."
LAB = "Fasting glucose was measured by the same laboratory at every visit of the study."
CENTRES = "The measurements of all the participating centres can be compared directly."


@pytest.fixture(scope="module")
def keywords():
    """A domain whose long words the general vocabulary lacks, but for one that it has."""
    text = "immunosuppression hyperglycaemia transplantation gastroenterology complicate and in the end. " * 50
    text += text.title()
    return mining.learn_keywords([text], ["Ġtransplantation", "▁complicate"])


def mined(keywords):
    return mining.mine(BODY, mining.sentences(BODY), keywords, random.Random(0)).examples


def test_keywords_are_long_word_starts_that_the_general_vocabulary_lacks(keywords):
    assert keywords.of("Immunosuppression and hyperglycaemia complicate transplantation in gastroenterology.") == [
        "Immunosuppression",
        "hyperglycaemia",
        "gastroenterology",
    ]


def test_a_sentence_of_too_many_pieces_has_no_keywords(keywords, monkeypatch):
    monkeypatch.setattr(mining, "MOST_PIECES", 3)
    assert keywords.of("hyperglycaemia and immunosuppression") == ["hyperglycaemia", "immunosuppression"]
    assert keywords.of("hyperglycaemia and immunosuppression in the end.") == []


def test_every_pattern_finds_its_sentences(keywords):
    examples_found = {(e.kind, e.s1, e.s2) for examples in mined(keywords).values() for e in examples}
    assert examples_found == {
        ("contradict", TRIAL, ARMS),
        ("different", TRIAL, ARMS),
        ("entail", LAB, CENTRES),
        ("cause_effect", LAB, CENTRES),
        ("definition", "Glycosylation", "The attachment of a sugar to a protein."),
        (
            "effect_cause",
            "The remarkable number of withdrawals in the second year of the study was mainly",
            "Gastrointestinal complaints of the elderly patients given metformin.",
        ),
        (
            "word_to_text",
            "Immunosuppression, hyperglycaemia, gastroenterology",
            "Immunosuppression and hyperglycaemia complicate transplantation in gastroenterology.",
        ),
    }


@pytest.mark.parametrize(
    "text",
    [
        "Start. Too short a sentence. However, this one would be long enough to be taken as the second sentence of a pair. ",
        f"Start. {TRIAL[:-1]}, it says. However, {ARMS.lower()} ",  # a comma within the first sentence
        f"{TRIAL} However, {ARMS.lower()} ",  # nothing before the first sentence
        f"Start. {TRIAL} However {ARMS.lower()} ",  # no comma after the connective
    ],
)
def test_what_is_no_pair_is_not_mined(text):
    assert mining.PATTERNS["contradict"].findall(text) == []


def test_at_most_two_examples_of_a_kind():
    body = "Start. " + f"{TRIAL} However, {ARMS.lower()} " * 5
    examples = mining.mine(body, [], mining.learn_keywords(["x"], []), random.Random(0)).examples
    assert [e.kind for e in examples["nli"]] == ["contradict"] * 2


def test_sentences_end_at_full_stops_but_not_at_abbreviations():
    text = "Dr. Smith et al. Found it. It rose by 3.5 points vs. Placebo! Did it? Yes\nNew line."
    assert mining.sentences(text) == [
        "Dr. Smith et al. Found it.",
        "It rose by 3.5 points vs. Placebo!",
        "Did it?",
        "Yes",
        "New line.",
    ]


def test_the_transform_of_a_fixed_document(keywords):
    framed, asked = transform(DOCUMENT, "biomedicine", keywords, seed=0)
    assert transform(DOCUMENT, "biomedicine", keywords, seed=0) == (framed, asked)
    # Read against reading_templates.yaml by hand: title and completion as the frame, the questions after the text.
    assert framed == (FILES / "golden.txt").read_text().rstrip("\n")
    assert asked == {
        "nli": 2,
        "commonsense": 2,
        "paraphrase": 1,
        "text_to_text": 1,
        "word_to_text": 1,
        "summarisation": 1,
        "completion": 1,
    }


def test_frames_and_questions_have_their_shares(keywords):
    summaries = completions = 0
    for seed in range(400):
        framed, asked = transform(DOCUMENT, "biomedicine", keywords, seed)
        summaries, completions = summaries + asked["summarisation"], completions + asked["completion"]
        assert asked["nli"] == asked["paraphrase"] + 1 == asked["commonsense"] == 2
        assert "  " not in framed
        assert "{" not in framed
        assert "The end." in framed
    assert summaries / 400 == pytest.approx(0.8, abs=0.06)
    assert completions / 400 == pytest.approx(0.5, abs=0.08)


def test_four_of_five_relations_are_asked_for_the_others_for_their_second_sentence():
    example, rng = mining.Example("entail", "Rain fell.", "The river rose."), random.Random(0)
    generated = sum(reading_comprehension._ask(example, "finance", rng).endswith(example.s2) for _ in range(2000))
    assert generated / 2000 == pytest.approx(0.2, abs=0.03)


def test_a_text_of_one_sentence_is_left_plain(keywords):
    framed, asked = transform("One short sentence.", "finance", keywords, 0)
    assert "One short sentence." in framed
    assert not asked


def test_every_template_is_used_with_its_fields_and_none_stands_twice():
    fields = {
        "nli_generate": {"s1"},
        "words_to_sentence": {"words", "domain"},
        "sentence_to_words": {"sentence", "domain"},
        "connect": {"domain"},
        "title_after": {"article", "title", "domain"},
        "title_before": {"article", "title", "domain"},
        "completion": {"start", "end", "domain"},
        "title_and_completion": {"title", "start", "end", "domain"},
        "plain": {"article", "domain"},
    }
    wording = reading_comprehension.templates()
    classify = [q for group in wording.pop("nli_classify") for q in group["questions"]]
    assert len(classify) == len(set(classify)) == 37
    assert all(set(re.findall(r"{(\w+)}", q)) == {"s1", "s2"} for q in classify)
    for name, variants in wording.items():
        flat = [v for group in variants.values() for v in group] if isinstance(variants, dict) else variants
        assert len(set(flat)) == len(flat) - (2 if name == "connect" else 0), name
        for variant in flat:
            assert set(re.findall(r"{(\w+)}", variant)) <= fields.get(name, {"s1"}), variant
