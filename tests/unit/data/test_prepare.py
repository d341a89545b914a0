"""Preparation: cached by content, the same by one process or several, going on where it was, refusing what is empty."""

import json
import re
from types import SimpleNamespace

import pytest

from mora.config import compose
from mora.data import load, prepare, shard_writer
from mora.data.batches import Batches
from mora.data.packing import blocks
from mora.data.samples import StoredSamples
from mora.errors import DataError
from mora.models.tokenizers import load_tokenizer


def config(task, *overrides):
    return compose([f"task={task}", "method=none", "scale=smoke", "task.data.validation_sequences=0", *overrides])


def corpus(path, format):
    return f"[{{kind: files, files: {path}, sha256: null, format: {format}, max_rows: null}}]"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("task", ["tulu2", "metamath", "biomed", "finance", "c4"])
def test_prepared_once_and_then_read_from_the_cache(task, characters, monkeypatch):
    first = load(config(task), characters)
    assert len(first.samples) == first.report.sequences > 8
    assert sum(s.n_loss for s in first.samples) == first.report.loss_tokens
    monkeypatch.setattr(prepare, "_make", None)  # must not be needed again
    again = load(config(task), characters)
    assert list(again.samples) == list(first.samples)
    assert again.report == first.report
    assert again.fingerprints == first.fingerprints


def test_other_content_recipe_or_tokenizer_is_prepared_anew(tmp_path, characters):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "response": "a"}])
    base = [f"task.data.corpus.sources={corpus(path, 'metamath')}"]
    first = load(config("metamath", *base), characters).fingerprints["prepared"]
    assert load(config("metamath", *base, "task.data.max_length=300"), characters).fingerprints["prepared"] != first
    characters.add_tokens(["query"])
    assert load(config("metamath", *base), characters).fingerprints["prepared"] != first
    write(path, [{"query": "q", "response": "b"}])
    assert load(config("metamath", *base), load_tokenizer(config("metamath").model)).fingerprints["prepared"] != first


def test_several_processes_make_what_one_makes(tmp_path, characters):
    path = write(tmp_path / "a.jsonl", [{"query": f"q{i}", "response": f"a{i}"} for i in range(2500)])
    data = config("metamath", f"task.data.corpus.sources={corpus(path, 'metamath')}").task.data
    alone, _, _, report = prepare.prepare(data, characters, workers=1)
    (tmp_path / "cache").rename(tmp_path / "first")
    stored = StoredSamples([tmp_path / "first" / shard.relative_to(tmp_path / "cache") for shard in alone.shards])
    together, _, _, same = prepare.prepare(data, characters, workers=2)
    assert len(together) == 2500
    assert len(together.shards) == 3
    assert list(together) == list(stored)
    assert same == report


def test_a_stopped_preparation_goes_on_where_it_was(tmp_path, characters, monkeypatch):
    path = write(tmp_path / "a.jsonl", [{"query": f"q{i}", "response": f"a{i}"} for i in range(2500)])
    data = config("metamath", f"task.data.corpus.sources={corpus(path, 'metamath')}").task.data
    done, real = [], shard_writer.write_shard

    def stop_at_the_third(folder, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(folder)
        real(folder, *rest)

    monkeypatch.setattr(shard_writer, "write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(data, characters, workers=1)
    made = []
    monkeypatch.setattr(
        shard_writer, "write_shard", lambda folder, *rest: (made.append(folder.name), real(folder, *rest))
    )
    samples = prepare.prepare(data, characters, workers=1).training
    assert made == [".partial-samples-00002"]
    assert len(samples) == 2500


@pytest.mark.parametrize("packing", ["none", "isolated"])
def test_packing_keeps_every_token(packing, characters):
    plain = load(config("tulu2", "task.data.packing=none"), characters)
    data = load(config("tulu2", f"task.data.packing={packing}"), characters)
    assert data.report.sequence_tokens == plain.report.sequence_tokens
    assert data.report.loss_tokens == plain.report.loss_tokens
    if packing == "isolated":
        assert len(data.samples) < len(plain.samples) / 2
        assert all(s.starts[0] == 0 and len(s.input_ids) <= 2048 for s in data.samples)


def test_c4_blocks_are_those_of_each_thousand_documents(tmp_path, characters):
    texts = [f"text number {i}" for i in range(1500)]
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = load(config("c4", f"task.data.corpus.sources={corpus(path, 'text')}"), characters)
    ids = [[*characters(text)["input_ids"], characters.eos_token_id] for text in texts]
    assert list(data.samples) == [*blocks(ids[:1000], 128), *blocks(ids[1000:], 128)]
    assert data.report.documents["text"] == 1500


def test_the_mix_has_its_share_by_tokens_and_ends_at_max_sequences(characters):
    data = load(config("finance", "task.data.instructions.sources.0.rows=2000"), characters)
    tokens = data.report.tokens
    assert tokens["instructions"] / tokens["texts"] == pytest.approx(2.0, abs=0.01)
    capped = load(
        config("finance", "task.data.instructions.sources.0.rows=2000", "task.data.max_sequences=40"), characters
    )
    assert len(capped.samples) == 40
    assert all(len(s.input_ids) == 512 for s in capped.samples)
    alone = load(config("finance", "task.data.instruction_tokens_per_text_token=0"), characters)
    assert alone.report.documents["instructions"] == alone.report.tokens["instructions"] == 0


def test_domain_texts_that_are_cut_are_counted_with_what_is_lost(tmp_path, characters):
    texts = [{"text": "~" * 312}, {"text": "Title\n" + "^" * 313}, {"text": "@" * 1000}]
    path = write(tmp_path / "a.jsonl", texts)  # 312 is the smoke length of 512 less the 200 for questions
    overrides = [f"task.data.texts.sources={corpus(path, 'text')}", "task.data.packing=isolated"]
    data = load(config("biomed", *overrides), characters)
    assert data.report.notes["texts cut at 312 tokens, which leaves room for questions"] == 2
    assert data.report.notes["tokens of texts cut off at 312"] == 1 + 688
    assert "note: tokens of texts cut off at 312: 689" in data.report.text("biomed")
    kept = "".join(characters.decode(sample.input_ids) for sample in data.samples)
    assert [kept.count(letter) for letter in "~^@"] == [312, 312, 312]


def test_overlapping_rows_are_dropped_and_counted_or_only_counted(tmp_path, characters, monkeypatch):
    question = "Natalia sold clips to 48 of her friends in April and then she sold half as many clips in May"
    (tmp_path / "gsm8k").mkdir()
    write(tmp_path / "gsm8k" / "test.jsonl", [{"question": question, "answer": "#### 1"}])
    rows = [{"query": f"Now: {question}", "response": "a"}, {"query": "q", "response": "a"}]
    path = write(tmp_path / "a.jsonl", rows)
    monkeypatch.setenv("MORA_DATA_DIR", str(tmp_path))
    base = [f"task.data.corpus.sources={corpus(path, 'metamath')}", "task.data.overlap.sets=[gsm8k,math]"]
    dropped = load(config("metamath", *base, "task.data.overlap.action=drop"), characters)
    assert len(dropped.samples) == 1
    text = dropped.report.text("metamath")
    assert "dropped: overlaps with evaluation set gsm8k: 1" in text
    assert "note: not compared with evaluation set math: 1" in text
    counted = load(config("metamath", *base, "task.data.overlap.action=report"), characters)
    assert len(counted.samples) == 2
    assert "note: overlaps with evaluation set gsm8k: 1" in counted.report.text("metamath")


def test_what_is_held_out_is_not_trained_on_and_always_the_same(characters):
    whole = load(config("metamath"), characters)
    data = load(config("metamath", "task.data.validation_sequences=10", "seed=5"), characters)
    again = load(config("metamath", "task.data.validation_sequences=10"), characters)
    assert (len(data.samples), len(data.validation)) == (62, 10)
    assert list(data.validation) == list(again.validation)
    ids = [tuple(s.input_ids) for s in (*data.samples, *data.validation)]
    assert sorted(ids) == sorted(tuple(s.input_ids) for s in whole.samples)
    assert Batches(data.samples, 0, 4, 4, 0).longest == max(len(s.input_ids) for s in data.samples)
    with pytest.raises(DataError, match="validation_sequences=72: the data have only 72 sequences"):
        load(config("metamath", "task.data.validation_sequences=72"), characters)


def test_rephrasings_of_a_held_out_question_are_not_trained_on(tmp_path, characters):
    rows = [
        {"query": f"{way} {i}?", "response": "a", "original_question": f"How  many {i}?"}
        for way in ("Again", "Turned", "How many")
        for i in range(40)
    ]
    path = write(tmp_path / "a.jsonl", [*rows, {"query": "How many 0?", "response": "b"}])
    overrides = [f"task.data.corpus.sources={corpus(path, 'metamath')}", "task.data.validation_sequences=10"]
    for packing in ("none", "isolated"):
        data = load(config("metamath", *overrides, f"task.data.packing={packing}"), characters)
        held, trained = (
            [number for s in part for number in re.findall(r" (\d+)\?", characters.decode(s.input_ids))]
            for part in (data.validation, data.samples)
        )
        assert len(set(held)) == len(held) == len(data.validation) == 10
        assert set(trained) == {str(i) for i in range(40)} - set(held)
        left_out = data.report.notes["rows left out of training: held out, or of a question that is"]
        assert left_out == 30 + ("0" in held)  # that question was asked once more
        assert len(trained) == 121 - left_out
        assert data.report.sequences == len(data.samples)
        assert data.report.loss_tokens == sum(s.n_loss for s in data.samples)


def hub(format, local, validation):
    """Overrides of a corpus whose hub set is not there, with local files instead and held-out ones beside them."""
    source = f"{{kind: hub, id: no/set, files: '*', revision: main, format: {format}, max_rows: null}}"
    return f"{{sources: [{source}], local: {corpus(local, format)}, validation: {corpus(validation, format)}}}"


def test_held_out_files_are_taken_beside_local_ones_and_no_training_row_is_lost(tmp_path, characters):
    def talks(name, n):
        made = [{"instruction": f"{name} {i}", "input": "", "output": "a"} for i in range(n)]
        return write(tmp_path / f"{name}.jsonl", made)

    given = hub("instruction", talks("train", 30), talks("apart", 20))
    overrides = [f"task.data.corpus={given}", "task.data.validation_sequences=12"]
    data = load(config("tulu2", *overrides), characters)
    assert (len(data.samples), len(data.validation)) == (30, 12)
    assert all("apart" in characters.decode(s.input_ids) for s in data.validation)
    assert list(data.fingerprints["validation"]["corpus"][0]["sha256"]) == ["apart.jsonl"]
    (tmp_path / "apart.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"no file matches .*apart.jsonl.*; or hold out training documents: validation=\[\]"
    ):
        load(config("tulu2", *overrides), characters)


@pytest.mark.parametrize("files", [True, False])
def test_no_document_of_the_mix_is_held_out_in_part(tmp_path, characters, files):
    def texts(name, first, n):
        made = [{"text": f"<{i}> " + "word " * 20} for i in range(first, first + n)]
        return write(tmp_path / f"{name}.jsonl", made)

    train, apart = texts("train", 0, 200), texts("apart", 500, 50)
    given = hub("text", train, apart) if files else f"{{sources: {corpus(train, 'text')}, local: []}}"
    overrides = [f"task.data.texts={given}", "task.data.instruction_tokens_per_text_token=0"]
    data = load(config("biomed", *overrides, "task.data.validation_sequences=4"), characters)
    held, trained = (
        {int(number) for s in part for number in re.findall(r"<(\d+)>", characters.decode(s.input_ids))}
        for part in (data.validation, data.samples)
    )
    assert held
    assert held.isdisjoint(trained)
    assert data.report.documents["texts"] == (200 if files else 200 - len(held))
    if files:
        assert min(held) >= 500
    else:
        assert 3 * 512 <= len(data.validation) * 512 <= 4 * 512
        with pytest.raises(DataError, match="all 200 documents of the texts would be held out; lower it"):
            load(config("biomed", *overrides, "task.data.validation_sequences=4000"), characters)


def test_blocks_of_c4_and_their_key_are_as_they_were(characters):
    assert load(config("c4"), characters).fingerprints["prepared"] == "8b0db9473e26e0fb"


@pytest.mark.parametrize(("task", "part"), [("metamath", "corpus"), ("biomed", "texts"), ("biomed", "instructions")])
def test_an_empty_file_is_refused_beside_a_full_one_too(tmp_path, characters, task, part):
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: there are no rows$"):
        load(config(task, f"task.data.{part}.sources={corpus(empty, 'text')}"), characters)
    full = write(tmp_path / "full.jsonl", [{"query": "q", "response": "a"}])
    both = f"[{corpus(full, 'metamath')[1:-1]}, {corpus(empty, 'metamath')[1:-1]}]"
    with pytest.raises(DataError, match=r"empty\.jsonl: there are no rows$"):
        load(config("metamath", f"task.data.corpus.sources={both}"), characters)


def test_data_without_one_sequence_are_refused(tmp_path, characters):
    path = write(tmp_path / "a.jsonl", [{"query": "q" * 600, "response": "a"}])
    with pytest.raises(DataError, match=r"no training sequence came of .*a\.jsonl.*: no answer within 512 tokens: 1"):
        load(config("metamath", f"task.data.corpus.sources={corpus(path, 'metamath')}"), characters)
    write(path, [{"text": "short"}])
    with pytest.raises(DataError, match=r"no training sequence came of .*a\.jsonl.*: too little text for one sequence"):
        load(config("c4", f"task.data.corpus.sources={corpus(path, 'text')}"), characters)


def test_a_bad_row_in_another_process_names_file_line_and_field(tmp_path, characters):
    rows = [{"query": "q", "response": "a"} for _ in range(1500)]
    path = write(tmp_path / "a.jsonl", [*rows, {"query": "q", "answer": "a"}])
    data = config("metamath", f"task.data.corpus.sources={corpus(path, 'metamath')}").task.data
    with pytest.raises(DataError, match=r"a\.jsonl:1501: field 'response' is missing.*the row has answer, query"):
        prepare.prepare(data, characters, workers=2)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = SimpleNamespace(eos_token_id=None, name_or_path="mine")
    with pytest.raises(DataError, match="the tokenizer 'mine' has no EOS token"):
        load(config("c4"), tokenizer)


def test_the_wrong_kind_of_rows_is_refused(tmp_path, characters):
    path = write(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="format='text' holds plain text, this task needs questions and answers"):
        load(config("metamath", f"task.data.corpus.sources={corpus(path, 'text')}"), characters)


def test_a_conversation_of_several_turns_is_no_metamath_row(tmp_path, characters):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])
    with pytest.raises(DataError, match=r"a.jsonl:1: 4 turns, expected one question and one answer"):
        load(config("metamath", f"task.data.corpus.sources={corpus(path, 'messages')}"), characters)
