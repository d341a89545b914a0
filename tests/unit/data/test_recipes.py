"""Texts, token ids and labels of fixed records. Characters are ids 3.. of the tiny tokenizer, so that ids can be read."""

import pytest

from mora.data import chat, metamath
from mora.data.records import Conversation, Record, conversation, document
from mora.data.samples import IGNORE

TALK = Conversation(
    [("system", "Be brief."), ("user", " Hi? "), ("assistant", "Yes."), ("user", "Ok"), ("assistant", "B")]
)


def spans(sample, tokenizer):
    """The text with a loss in [brackets], token by token."""
    shown, inside = "", False
    for token, label in zip(sample.input_ids, sample.labels, strict=True):
        assert label in (token, IGNORE)
        if (label != IGNORE) != inside:
            shown, inside = shown + ("]" if inside else "["), not inside
        shown += tokenizer.decode([token])
    return shown + ("]" if inside else "")


def test_tulu_text_and_mask(characters):
    sample = chat.encode(TALK, characters, 2048)
    assert spans(sample, characters) == (
        "<|system|>\nBe brief.\n<|user|>\nHi?\n<|assistant|>\n[Yes.</s>\n]<|user|>\nOk\n<|assistant|>\n[B</s>]"
    )


def test_tulu_token_ids_and_labels(characters):
    sample = chat.encode(Conversation([("user", "a"), ("assistant", "b1")]), characters, 2048)
    ids = [characters.convert_tokens_to_ids(c) for c in "<|user|>\na\n<|assistant|>\nb1"] + [2]
    assert ids[:8] == [82, 94, 33, 31, 17, 30, 94, 84]  # < | u s e r | >
    assert sample.input_ids == ids
    assert sample.labels == [IGNORE] * 25 + [14, 4, 2]


def test_tulu_is_cut_and_a_late_answer_has_no_label(characters):
    cut = chat.encode(TALK, characters, 50)
    assert len(cut.input_ids) == len(cut.labels) == 50
    assert spans(cut, characters).endswith("<|assistant|>\n[Ye]")
    assert set(chat.encode(TALK, characters, 40).labels) == {IGNORE}


def test_tulu_with_a_real_tokenizer_that_prepends_bos(characters):
    characters.add_bos_token = True
    if characters("a")["input_ids"][0] != characters.bos_token_id:
        from tokenizers.processors import TemplateProcessing

        characters._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    sample = chat.encode(Conversation([("user", "a"), ("assistant", "b")]), characters, 2048)
    assert spans(sample, characters) == "<s><|user|>\na\n<|assistant|>\n[b</s>]"


def test_metamath_prompt_and_mask(characters):
    sample = metamath.encode(Conversation([("user", "1 + 1?"), ("assistant", "2\nThe answer is: 2")]), characters, 512)
    assert spans(sample, characters) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n1 + 1?\n\n### Response:[2\nThe answer is: 2</s>]"
    )
    assert sample.n_prompt == 145
    assert sample.labels[145:] == [5, 99, 58, 20, 17, 97, 13, 26, 31, 35, 17, 30, 97, 21, 31, 80, 97, 5, 2]


def test_metamath_query_of_several_lines_has_an_input(characters):
    sample = metamath.encode(Conversation([("user", "Solve\nx = 1\ny"), ("assistant", "1")]), characters, 512)
    assert spans(sample, characters).startswith("Below is an instruction that describes a task, paired with an input")
    assert spans(sample, characters).endswith("### Instruction:\nSolve\n\n### Input:\nx = 1\ny\n\n### Response:[1</s>]")


def test_metamath_is_cut_at_512(characters):
    long = metamath.encode(Conversation([("user", "q"), ("assistant", "x" * 600)]), characters, 512)
    assert len(long.input_ids) == 512
    assert long.input_ids[-1] != characters.eos_token_id
    assert set(metamath.encode(Conversation([("user", "q" * 600), ("assistant", "x")]), characters, 512).labels) == {
        IGNORE
    }


@pytest.mark.parametrize(
    ("format", "row", "turns"),
    [
        (
            "messages",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            ["q", "a"],
        ),
        ("instruction", {"instruction": "do", "input": "this", "output": "a"}, ["do\n\nthis", "a"]),
        ("instruction", {"instruction": "do", "input": "", "output": "a"}, ["do", "a"]),
        ("lima", {"conversations": ["q", "a"]}, ["q", "a"]),
        ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q", "a"]),
        ("openorca", {"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
        ("metamath", {"query": "q", "response": "a"}, ["q", "a"]),
        (
            "gsm8k",
            {"question": "q", "answer": "48/2 = <<48/2=24>>24.\n#### 24"},
            ["q", "48/2 = 24.\n#### 24\nThe answer is: 24"],
        ),
        (
            "math",
            {"problem": "q", "solution": "So $\\boxed{\\frac{1}{2}}$."},
            ["q", "So $\\boxed{\\frac{1}{2}}$.\nThe answer is: \\frac{1}{2}"],
        ),
    ],
)
def test_rows_of_every_format_become_turns(format, row, turns):
    talk = conversation(Record("f:1", row), format)
    assert [content for _, content in talk.turns] == turns
    assert talk.turns[-1][0] == "assistant"


def test_a_title_becomes_the_first_line_of_a_text():
    assert document(Record("f:1", {"text": "body"}), "text").text == "body"
    assert document(Record("f:1", {"text": "body", "title": "Head"}), "text").text == "Head\nbody"
