"""The tokens that begin and end a text: those of configs/model, whatever a version of transformers reads from a file."""

import json

import pytest

from mora.config.model_schema import TextEnds
from mora.config.run_id import ENDS_OF_LAYOUT_1
from mora.config.source import ROOT
from mora.data.prepare import tokenizer_fingerprint
from mora.errors import ModelError
from mora.models import known
from mora.models.tokenizers import character_tokenizer, set_text_ends


def test_a_models_tokenizer_is_the_one_that_its_results_were_made_with(smollm2):
    of_results = {
        json.loads(path.read_text())["data"]["fingerprints"]["tokenizer"]
        for path in (ROOT / "results" / "runs").glob("c4-*.json")
    }
    assert of_results == {tokenizer_fingerprint(smollm2)}


@pytest.mark.parametrize("name", ["smollm2_135m", "qwen25_coder_0b5", "qwen25_coder_1b5"])
def test_a_gguf_model_says_what_its_texts_begin_and_end_with_as_its_runs_did(name):
    assert known.named(name).text_ends.model_dump() in ENDS_OF_LAYOUT_1


def test_text_ends_are_set_and_a_token_that_is_none_is_named():
    tokenizer = character_tokenizer()
    set_text_ends(tokenizer, TextEnds(bos=None, eos="<pad>"))
    assert (tokenizer.bos_token, tokenizer.eos_token_id) == (None, 0)
    with pytest.raises(ModelError, match=r"model\.text_ends\.eos='<end>': the tokenizer has no such token"):
        set_text_ends(tokenizer, TextEnds(bos=None, eos="<end>"))
