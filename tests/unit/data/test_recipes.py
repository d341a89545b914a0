"""Texts, token ids and labels of fixed records. Characters are ids 3.. of the tiny tokenizer, so that ids can be read."""

import json

import pytest
from tokenizers.processors import TemplateProcessing

from mora.config.cached_composition import compose_cached as compose
from mora.data import chat, load, metamath
from mora.data.encoders import BlockEncoder
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


# Ids of "<|user|>", "<|assistant|>" and "<|system|>" with the line break after them: no tokens of their own, many pieces.
USER, ASSISTANT, SYSTEM = (
    [44, 108, 4093, 108, 46, 198],
    [44, 108, 520, 9531, 108, 46, 198],
    [44, 108, 9690, 108, 46, 198],
)


def test_tulu_with_smollm2s_tokenizer(smollm2):
    talk = Conversation([("system", "Be brief. "), ("user", "Hi?"), ("assistant", "Yes, 42."), ("user", "Ok")])
    sample = chat.encode(Conversation([*talk.turns, ("assistant", "Bye")]), smollm2, 2048)
    # Be| brief|.  Hi|?  Yes|,| |4|2|.|<|im_start|>  Ok  By|e|<|im_start|>; the line break after an EOS has a loss too.
    parts = [
        ([*SYSTEM, 6077, 5453, 30, 198], False),
        ([*USER, 26843, 47, 198], False),
        (ASSISTANT, False),
        ([10539, 28, 216, 36, 34, 30, 1, 198], True),
        ([*USER, 24487, 198], False),
        (ASSISTANT, False),
        ([3087, 85, 1], True),
    ]
    assert sample.input_ids == [token for ids, _ in parts for token in ids]
    assert sample.labels == [token if loss else IGNORE for ids, loss in parts for token in ids]


def test_metamath_with_smollm2s_tokenizer(smollm2):
    talk = Conversation([("user", "What is 17 + 25?"), ("assistant", "17 + 25 = 42\nThe answer is: 42")])
    sample = metamath.encode(talk, smollm2, 512)
    header = [19798, 314, 354, 5785, 338, 6601, 253, 3856, 30, 9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30]
    asked = [198, 198, 3757, 20880, 42, 198, 1780, 314, 216, 33, 39, 1232, 216, 34, 37, 47, 198, 198, 3757, 14212, 42]
    # 1|7| +| |2|5| =| |4|2|line break|The| answer| is|:| |4|2|<|im_start|>: no space after the prompt's colon.
    answer = [33, 39, 1232, 216, 34, 37, 446, 216, 36, 34, 198, 504, 2988, 314, 42, 216, 36, 34, 1]
    assert sample.input_ids == header + asked + answer
    assert sample.labels == [IGNORE] * 39 + answer
    assert sample.n_prompt == len(header + asked) == 39


def test_c4_blocks_of_512_with_smollm2s_tokenizer(smollm2, tmp_path):
    """Documents end to end, one EOS after each, cut anywhere every 512 tokens, the rest left out; every token has a loss."""
    texts = ["The enzyme is a protein.", "Bonds fell in May.\n" * 100] * 2
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = f"[{{kind: files, files: {path}, sha256: null, format: text, max_rows: null}}]"
    overrides = [f"task.data.corpus.sources={source}", "task.data.max_length=512", "task.data.validation_sequences=0"]
    data = load(compose(["task=c4", "scale=smoke", "method=none", *overrides]), smollm2)
    enzyme = [504, 11790, 314, 253, 3677, 30, 1]  # The| enzyme| is| a| protein|.|<|im_start|>
    bonds = [50, 19870, 6641, 281, 2405, 30, 198]  # B|onds| fell| in| May|.|line break
    first = [*enzyme, *bonds * 72, 50]
    second = [*bonds[1:], *bonds * 27, 1, *enzyme, *bonds * 44, 50]
    assert [sample.input_ids for sample in data.samples] == [first, second]
    assert [sample.labels for sample in data.samples] == [first, second]
    assert data.report.notes == {"tokens left over at the end of map batches": 6 + 55 * 7 + 1}


def test_c4_has_one_eos_a_document_where_the_tokenizer_adds_its_own(characters):
    """As T5's does, the tokenizer of paper scale."""
    characters._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    assert characters("ab")["input_ids"] == [13, 14, 2]
    made = BlockEncoder(characters, 3)([Record("f:1", {"text": "ab"}), Record("f:2", {"text": "cd"})], "text")
    assert [sample.input_ids for sample in made.samples] == [[13, 14, 2], [15, 16, 2]]
