"""A tiny GGUF file, written here, as transformers loads it and as we do."""

import hashlib
import json

import gguf as library
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mora.config.model_schema import Model
from mora.errors import ModelError
from mora.models import gguf
from mora.models.load import load_model
from mora.models.tokenizers import load_tokenizer

H, FFN, LAYERS, HEADS, KV = 64, 96, 2, 4, 2
TOKENS = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz0123456789-:", "ab"]
QUANTS = {"Q8_0": library.GGMLQuantizationType.Q8_0, "Q5_0": library.GGMLQuantizationType.Q5_0}


def write(path, architecture):
    """A model of random weights, its linears as Q8_0 or Q5_0; embedding and head apart, as in Qwen's files."""
    generator = np.random.default_rng(0)
    out = library.GGUFWriter(path, architecture)
    out.add_block_count(LAYERS)
    out.add_context_length(128)
    out.add_embedding_length(H)
    out.add_feed_forward_length(FFN)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(TOKENS))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(TOKENS)
    out.add_token_merges(["a b"])
    out.add_token_types([3] + [1] * (len(TOKENS) - 1))
    out.add_eos_token_id(0)
    out.add_bos_token_id(0)
    out.add_pad_token_id(0)

    def add(name, *shape, kind=None):
        values = generator.standard_normal(shape, dtype=np.float32) * 0.05
        if kind is None:
            out.add_tensor(name, values)
        else:
            out.add_tensor(name, library.quants.quantize(values, QUANTS[kind]), raw_dtype=QUANTS[kind])

    kv = H // HEADS * KV
    add("token_embd.weight", len(TOKENS), H, kind="Q5_0")
    add("output.weight", len(TOKENS), H, kind="Q8_0")
    add("output_norm.weight", H)
    for i in range(LAYERS):
        block = f"blk.{i}."
        for name, rows, columns in (
            ("attn_q", H, H), ("attn_k", kv, H), ("attn_v", kv, H), ("attn_output", H, H),
            ("ffn_gate", FFN, H), ("ffn_up", FFN, H), ("ffn_down", H, FFN),
        ):  # fmt: skip
            add(f"{block}{name}.weight", rows, columns, kind="Q5_0" if i else "Q8_0")
        for name in ("attn_norm", "ffn_norm"):
            add(f"{block}{name}.weight", H)
        if architecture == "qwen2":
            for name, size in (("attn_q", H), ("attn_k", kv), ("attn_v", kv)):
                add(f"{block}{name}.bias", size)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.fixture
def model(tmp_path, monkeypatch):
    """As in configs/model, of an architecture and further fields."""
    monkeypatch.setenv("MORA_CACHE_DIR", str(tmp_path / "cache"))

    def made(architecture, **fields):
        path = tmp_path / f"{architecture}.gguf"
        if not path.is_file():
            write(path, architecture)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        given = {"name": architecture, "source": "gguf", "path": str(path), "revision": None, "sha256": digest}
        return Model.model_validate(given | fields)

    return made


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_are_those_of_transformers_bit_for_bit(model, architecture, precision, monkeypatch):
    monkeypatch.setattr(gguf, "BLOCK", 200)  # several blocks of rows per matrix
    config = model(architecture, dtype=precision)
    folder = gguf.as_folder(config)
    ours, tokenizer = load_model(config, precision)
    where = {"pretrained_model_name_or_path": str(folder.parents[2]), "gguf_file": f"{architecture}.gguf"}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=ours.dtype)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())
    ids = torch.tensor([[3, 7, 9, 12]])
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    text = "abc-12:zab"
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(**where)(text)["input_ids"]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_the_head_takes_the_embeddings_place_where_they_are_tied(model):
    plain, _ = load_model(model("qwen2"), "fp32")
    tied, _ = load_model(model("qwen2", tie_head=True), "fp32")
    assert not plain.config.tie_word_embeddings
    assert tied.config.tie_word_embeddings
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert torch.equal(tied.get_input_embeddings().weight, plain.get_output_embeddings().weight)
    assert not torch.equal(plain.get_input_embeddings().weight, plain.get_output_embeddings().weight)


def test_generation_stops_at_the_token_that_ends_texts_in_training_and_at_the_files_own(model):
    loaded, tokenizer = load_model(model("qwen2", text_ends={"bos": None, "eos": ":"}), "fp32")
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, ":")
    assert loaded.generation_config.eos_token_id == [0, tokenizer.eos_token_id]
    with torch.no_grad():  # whatever it reads, it writes ":"
        head = loaded.get_output_embeddings()
        loaded.set_output_embeddings(torch.nn.Linear(head.in_features, head.out_features))
        loaded.get_output_embeddings().weight.zero_()
        loaded.get_output_embeddings().bias.zero_()[tokenizer.eos_token_id] = 1.0
    written = loaded.generate(torch.tensor([[3, 7]]), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert written.tolist() == [[3, 7, tokenizer.eos_token_id]]


def test_a_checkpoint_is_made_once_and_whole(model, monkeypatch, tmp_path):
    config = model("llama")
    folder = gguf.as_folder(config)
    monkeypatch.setattr(gguf, "_convert", None)
    assert gguf.as_folder(config) == folder
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
    load_tokenizer(config)


def test_what_is_no_gguf_file_or_another_is_refused_and_nothing_is_written(model, tmp_path):
    config = model("llama")
    with pytest.raises(ModelError, match=r"llama\.gguf has sha256"):
        gguf.as_folder(config.model_copy(update={"sha256": "0" * 64}))
    (tmp_path / "llama.gguf").write_bytes(b"nothing")
    config = config.model_copy(update={"sha256": hashlib.sha256(b"nothing").hexdigest()})
    with pytest.raises(ModelError, match=r"llama\.gguf cannot be read as GGUF: "):
        gguf.as_folder(config)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert library.GGUFReader.__name__ == "GGUFReader"
