"""The tokens that begin and end a text: those of configs/model, whatever a version of transformers reads from a file."""

import json

import pytest
from pydantic import ValidationError

from mora.config import compose
from mora.config.model_schema import EARLIER_TEXT_ENDS, Model, TextEnds
from mora.config.source import ROOT
from mora.data.prepare import tokenizer_fingerprint
from mora.errors import ModelError
from mora.models import known
from mora.models.tokenizers import character_tokenizer, load_tokenizer, set_text_ends


def test_a_models_tokenizer_is_the_one_that_its_results_were_made_with(smollm2):
    of_results = {
        json.loads(path.read_text())["data"]["fingerprints"]["tokenizer"]
        for path in (ROOT / "results" / "runs").glob("c4-*.json")
    }
    assert of_results == {tokenizer_fingerprint(smollm2)}
    drawn = compose(["task=c4", "scale=lite", "method=none"]).model
    assert tokenizer_fingerprint(load_tokenizer(drawn)) in of_results


@pytest.mark.parametrize("name", sorted(EARLIER_TEXT_ENDS))
def test_a_model_says_what_its_texts_begin_and_end_with_and_an_earlier_configuration_means_the_same(name):
    model = known.named(name)
    assert model.text_ends.model_dump() == EARLIER_TEXT_ENDS[name]
    earlier = model.model_dump(exclude={"text_ends"})
    assert Model.model_validate(earlier).text_ends == model.text_ends


def test_text_ends_are_set_and_a_token_that_is_none_is_named():
    tokenizer = character_tokenizer()
    set_text_ends(tokenizer, TextEnds(bos=None, eos="<pad>"))
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == (None, 0)
    for field in ("bos", "eos"):
        ends = {"bos": None, "eos": "<pad>"} | {field: "<end>"}
        with pytest.raises(ModelError, match=rf"model\.text_ends\.{field}='<end>': the tokenizer has no such token"):
            set_text_ends(tokenizer, TextEnds(**ends))


def test_a_model_whose_weights_are_drawn_has_the_ends_of_its_tokenizer():
    with pytest.raises(ValidationError, match=r"text_ends: small takes those of its tokenizer, smollm2_135m"):
        Model(name="small", source="init", path=None, revision=None, sha256=None, tokenizer="smollm2_135m",
              text_ends=TextEnds(bos=None, eos="x"))  # fmt: skip
