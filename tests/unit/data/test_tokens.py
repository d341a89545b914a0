"""A tokenizer that appends EOS to every text makes the same samples and prompts as one that does not."""

import pytest
from tokenizers.processors import TemplateProcessing

from mora.config.cached_composition import compose_cached as compose
from mora.data import chat, metamath, tokens, uuid
from mora.data.prepare import tokenizer_fingerprint
from mora.data.records import Conversation
from mora.evaluate.backend import Backend
from mora.evaluate.response_cache import ResponseCache
from mora.models.load import load_model
from mora.models.tokenizers import character_tokenizer

TALK = Conversation([("user", "2+2?"), ("assistant", "four. The answer is: 4")])
TEMPLATES = {"plain": "$A", "bos": "<s> $A"}


def tokenizer(template):
    made = character_tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return made


@pytest.fixture(params=TEMPLATES)
def both(request):
    template = TEMPLATES[request.param]
    return tokenizer(template), tokenizer(f"{template} </s>")


@pytest.mark.parametrize("length", [512, 150, 146])
@pytest.mark.parametrize("encode", [metamath.encode, chat.encode])
def test_conversations(both, encode, length):
    plain, appends = both
    assert appends("a")["input_ids"][-1] == 2
    assert encode(TALK, appends, length) == encode(TALK, plain, length)


def test_uuid_pairs(both):
    pair = uuid.make_pairs(compose(["task=uuid", "method=none", "scale=smoke"]).task.data)[0]
    assert uuid.encode(pair, both[1], "value") == uuid.encode(pair, both[0], "value")


def test_what_is_prepared_with_one_serves_the_other(both):
    assert tokenizer_fingerprint(both[1]) == tokenizer_fingerprint(both[0])


@pytest.mark.parametrize(("text", "ends"), [("a", 0), ("a</s>", 1), ("a</s></s>", 2), ("", 0), ("a</s>\n", 0)])
def test_eos_is_there_as_often_as_the_text_has_it(both, text, ends):
    for each in both:
        ids = tokens.encode(each, text)
        assert ids[len(ids) - ends :] == [2] * ends
        assert 2 not in ids[len(ids) - ends - 1 : len(ids) - ends]
        assert ids == tokens.encode(both[0], text)


def test_prompts_of_an_evaluation_do_not_end(both):
    model, _ = load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
    plain, appends = (Backend(model, each, 2, 256, ResponseCache(None, "")) for each in both)
    texts = ["### Response:", "b", "c</s>"]
    assert [appends.tok_encode(text) for text in texts] == [plain.tok_encode(text) for text in texts]
    assert appends._encode_texts(texts) == plain._encode_texts(texts)
    for made, expected in zip(appends.tok_batch_encode(texts[:2]), plain.tok_batch_encode(texts[:2]), strict=True):
        assert made.tolist() == expected.tolist()
