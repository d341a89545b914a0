"""Models with few positions: what does not fit is cut by a rule that is said before the first answer."""

import dataclasses

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import BloomConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, OPTConfig, OPTForCausalLM

from mora.data.samples import Sample
from mora.errors import ConfigError, DataError
from mora.evaluate.backend import Backend
from mora.evaluate.harness import Settings, evaluate_model
from mora.evaluate.response_cache import ResponseCache
from mora.evaluate.window import by_answer, positions, with_answer
from mora.models.tokenizers import character_tokenizer
from mora.train.worker import check_positions


def small(kind, n_positions=128):
    torch.manual_seed(0)
    special = {"vocab_size": len(character_tokenizer()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=n_positions, **special)).eval()
    sizes = {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return OPTForCausalLM(OPTConfig(max_position_embeddings=128, **sizes, **special)).eval()


@pytest.mark.parametrize(
    ("config", "there"),
    [
        (GPT2Config(n_positions=77), 77),
        (OPTConfig(max_position_embeddings=78), 78),
        (LlamaConfig(), None),
        (BloomConfig(), None),
    ],
)
def test_only_a_table_of_positions_is_a_limit(config, there):
    module = torch.nn.Module()
    module.config = config
    assert positions(module) == there


@dataclasses.dataclass
class Request:
    arguments: tuple

    @property
    def args(self):
        return self.arguments


@pytest.mark.parametrize(
    ("answers", "window", "most", "expected"),
    [
        ([512], 2048, None, {(512, 2048): [0]}),
        ([5, 2048, 5], 2048, None, {(5, 2048): [0, 2], (2048, 3072): [1]}),
        ([512], 2048, 2048, {(512, 2048): [0]}),
        ([2048, 5], 2048, 2048, {(1024, 2048): [0], (5, 2048): [1]}),
        ([512], 256, 256, {(128, 256): [0]}),
    ],
)
def test_a_prompt_keeps_at_least_half_of_what_there_is(answers, window, most, expected):
    assert by_answer([Request(("q", {"max_gen_toks": n})) for n in answers], window, most) == expected


def test_a_prompt_is_cut_alike_whatever_is_asked_beside_it(tiny, monkeypatch):
    """The second request's long answer needs a larger window, in which the first one's prompt would not be cut."""
    monkeypatch.setattr("mora.evaluate.window.PROMPT_TOKENS", 8)
    lm = Backend(*tiny, 4, 32, ResponseCache(None, ""))
    asked = [
        Instance("generate_until", {}, (prompt, {"until": ["\n"], "max_gen_toks": tokens}), i)
        for i, (prompt, tokens) in enumerate((("who wrote this long text? " * 3, 4), ("so:", 100)))
    ]
    alone = [lm.generate_until([request])[0] for request in asked]
    assert lm.generate_until(asked) == alone
    assert lm.generate_until(asked[::-1]) == alone[::-1]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_an_answers_length_may_have_any_of_lm_evals_names(name):
    asked = Request(("q", {"until": ["."], name: 60}))
    assert by_answer([asked], 2048, None) == {(60, 2048): [0]}
    assert with_answer(asked, 60) is asked
    shorter = with_answer(asked, 20).args[1]
    assert shorter["until"] == ["."]
    assert {key: value for key, value in shorter.items() if key.startswith("max_")} == {"max_gen_toks": 20}


@pytest.mark.parametrize(
    ("answer", "why"), [("b" * 17, "17 tokens, expected at most 16, .*: raise"), ("", "no tokens: it is empty, or the")]
)
def test_an_answer_that_is_longer_than_what_is_read_at_once_or_empty_is_refused(tiny, answer, why):
    lm = Backend(*tiny, 4, 16, ResponseCache(None, ""))
    asked = [
        Instance("loglikelihood", {}, ("a", text), 0, ("c4_perplexity", number, 1))
        for number, text in enumerate(("b" * 16, answer))
    ]
    with pytest.raises(DataError, match=rf"^task c4_perplexity, document 1: its answer has {why}"):
        lm.loglikelihood(asked, disable_tqdm=True)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize("task", ["metamath_gsm8k", "mmlu_tulu_0shot"])
def test_it_is_scored_to_the_end_and_said_first(kind, task, tmp_path, capsys):
    from mora.evaluate import synthetic

    synthetic.write(tmp_path)
    metrics, _ = evaluate_model(
        small(kind), character_tokenizer(), [task], Settings(2, limit=1, data_dir=str(tmp_path))
    )
    assert metrics[task]["documents"] >= 1
    said = capsys.readouterr().err
    assert said.startswith("the model has 128 positions: longer prompts are cut at the left")


@pytest.mark.parametrize(("n_positions", "loads"), [(4096, 0), (128, 1)])
def test_tasks_that_are_there_are_not_loaded_again_unless_the_model_is_too_short_for_them(
    n_positions, loads, tmp_path, monkeypatch
):
    from mora.evaluate import harness, synthetic

    synthetic.write(tmp_path)
    settings, tokenizer, calls = Settings(2, limit=1, data_dir=str(tmp_path)), character_tokenizer(), []
    loaded = harness.load_tasks(["mmlu_tulu_0shot"], tokenizer, settings)
    real = harness.load_tasks
    monkeypatch.setattr(harness, "load_tasks", lambda *a: calls.append(a) or real(*a))
    metrics, _ = evaluate_model(small("gpt2", n_positions), tokenizer, ["mmlu_tulu_0shot"], settings, loaded)
    assert metrics["mmlu_tulu_0shot"]["documents"] == 1
    assert len(calls) == loads


def test_a_training_sequence_that_is_too_long_is_refused_before_training():
    samples = [Sample([1] * 129, [1] * 129)]
    with pytest.raises(
        ConfigError, match=r"128 positions, the longest sequence 129 tokens: lower task.data.max_length"
    ):
        check_positions(small("gpt2"), samples)
    check_positions(small("gpt2"), [Sample([1] * 128, [1] * 128)])
