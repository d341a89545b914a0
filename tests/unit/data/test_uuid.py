import hashlib
import json
import statistics
import uuid as stdlib_uuid

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from mora.config.cached_composition import compose_cached as compose
from mora.config.data_schema import UuidData
from mora.data.batches import IGNORE, Batches, Sample, collate
from mora.data.uuid import encode, fingerprint, make_pairs
from mora.evaluate.tasks.uuid.uuid_task import char_accuracy, score
from mora.models.load import load_model
from mora.models.tokenizers import character_tokenizer


def data(pairs=1000, seed=0, loss_on="all"):
    return UuidData(kind="uuid", pairs=pairs, seed=seed, loss_on=loss_on)


def test_pairs_are_version_4_and_a_function_of_the_seed():
    pairs = make_pairs(data())
    assert all(stdlib_uuid.UUID(x).version == 4 for pair in pairs for x in pair)
    assert len({x for pair in pairs for x in pair}) == 2000
    assert make_pairs(data()) == pairs
    assert make_pairs(data(pairs=10)) == pairs[:10]
    assert make_pairs(data(seed=1)) != pairs
    assert fingerprint(pairs) != fingerprint(pairs[:-1])


def test_unrelated_uuids_agree_on_the_floor_of_table_2():
    pairs = make_pairs(data(pairs=10000))
    assert 100 * statistics.fmean(char_accuracy(k, v) for k, v in pairs) == pytest.approx(9.77, abs=0.2)


def test_the_score_counts_digits_by_position():
    value = "205f3777-52b6-4270-9f67-c5125867d358"
    assert char_accuracy(value, value) == 1
    assert char_accuracy(f" {value}{value[:7]}\n", value) == 1
    assert char_accuracy("", value) == 0
    assert char_accuracy(value[:8], value) == 8 / 32
    assert char_accuracy("3" + value[1:], value) == 31 / 32
    assert score({"value": value}, [value]) == {"uuid_char_acc": 1, "uuid_exact_match": 1, "uuid_well_formed": 1}
    assert score({"value": value}, ["x"])["uuid_well_formed"] == 0


@pytest.mark.parametrize("loss_on", ["all", "value"])
def test_samples_are_key_colon_value_without_an_end_token(loss_on):
    tokenizer = character_tokenizer()
    pair = make_pairs(data(pairs=1))[0]
    sample = encode(pair, tokenizer, loss_on)
    assert tokenizer.decode(sample.input_ids) == f"{pair[0]}:{pair[1]}"
    assert sample.n_prompt == 37
    wanted = sample.input_ids if loss_on == "all" else [IGNORE] * 37 + sample.input_ids[37:]
    assert sample.labels == wanted


@pytest.mark.parametrize("merges", [[(":", "2")], [("1", ":"), ("1:", "2")], [("2", "1")]])
@pytest.mark.parametrize("first", [None, "1"])
def test_training_begins_with_the_prompt_whatever_the_tokenizer_joins(merges, first):
    vocabulary = {token: i for i, token in enumerate(["1", "2", ":", *("".join(pair) for pair in merges)])}
    whole = Tokenizer(models.BPE(vocabulary, merges))
    if first is not None:  # as a BOS token
        whole.post_processor = processors.TemplateProcessing(f"{first} $A", special_tokens=[(first, vocabulary[first])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    sample = encode(("1", "21"), tokenizer, "value")
    prompt = tokenizer("1:")["input_ids"]
    assert sample.input_ids[: sample.n_prompt] == prompt
    assert sample.labels == [IGNORE] * len(prompt) + sample.input_ids[len(prompt) :]
    assert tokenizer.decode(sample.input_ids).replace(" ", "") == f"{first or ''}1:21"


def test_smollm2s_ids_are_those_of_the_committed_results(smollm2):
    samples = [encode(pair, smollm2, "value") for pair in make_pairs(data())]
    ids = json.dumps([[s.input_ids, s.labels, s.n_prompt] for s in samples])
    assert (
        hashlib.sha256(ids.encode()).hexdigest() == "30a22d057a25bf343289d6ceb70b1aaa6f19bc707137a38f8bd5dd92af67a5ef"
    )


def test_the_tiny_tokenizer_keeps_its_special_ids_out_of_the_text():
    tokenizer = character_tokenizer()
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert len(special) == 3
    assert not special & set(tokenizer("0123456789abcdef-:")["input_ids"])


def test_tiny_is_initialised_by_its_width():
    config = compose(["task=uuid", "method=none", "scale=smoke"])
    model, _ = load_model(config.model, "fp32")
    assert model.config.initializer_range == pytest.approx(model.config.hidden_size**-0.5)
    again, _ = load_model(config.model, "fp32")
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_seed():
    samples = [Sample([i], [i]) for i in range(10)]
    batches = Batches(samples, 0, global_batch_size=4, micro_batch_size=2, seed=3)
    seen = [i for step in range(5) for i in batches.indices(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert Batches(samples, 0, 4, 2, seed=3).indices(4) == batches.indices(4)
    assert Batches(samples, 0, 4, 2, seed=4).indices(0) != batches.indices(0)


def test_padding_carries_no_loss():
    batch = collate([Sample([5, 6, 7], [5, 6, 7]), Sample([8], [8])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.labels.tolist() == [[5, 6, 7], [8, IGNORE, IGNORE]]
    assert Batches([Sample([5, 6, 7], [5, 6, 7])], 0, 1, 1, 0).loss_tokens(0) == 2
