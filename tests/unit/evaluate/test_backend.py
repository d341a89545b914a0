"""Log-likelihoods and texts of the tiny model by our backend: as transformers and lm-eval give them, in batches, resumed."""

from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from mora import MoraConfig
from mora.config.cached_composition import compose_cached as compose
from mora.evaluate import generation
from mora.evaluate.backend import Backend, _batches, equal_parts, option_scores, rows_at_once
from mora.evaluate.response_cache import ResponseCache
from mora.models.load import load_any, load_model


def backend(tiny, batch_size=4, max_length=512, response_cache=None):
    return Backend(*tiny, batch_size, max_length, response_cache or ResponseCache(None, ""))


REQUESTS = [
    (("", ""), [5, 6, 7], [8]),
    (("", ""), [5, 6, 7], [9]),
    (("", ""), [5, 6, 7], [9, 10, 11]),
    (("", ""), [20] * 30, [21, 22]),
    (("", ""), [7], [8]),
]


def test_likelihoods_are_those_of_a_plain_forward_pass(tiny):
    scored = backend(tiny)._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    for (_, context, continuation), (nats, _) in zip(REQUESTS, scored, strict=True):
        with torch.no_grad():
            logits = tiny[0](torch.tensor([context + continuation])).logits[0].float()
        logprobs = torch.log_softmax(logits, -1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        expected = sum(float(logprobs[p, t]) for p, t in zip(places, continuation, strict=True))
        assert nats == pytest.approx(expected, abs=1e-4)
        assert nats.n_tokens == len(continuation)


def test_a_batch_holds_inputs_of_like_length():
    sizes = [[len(ids) for ids in batch] for batch in _batches([(0,) * n for n in (10, 9, 8, 8, 7, 2)], 3)]
    assert sizes == [[10, 9, 8], [8, 7], [2]]


def test_inputs_that_begin_alike_share_the_beginnings_pass(tiny, monkeypatch):
    """Two groups, and inputs alone; options of one and of three tokens; a batch that is answered in halves."""
    monkeypatch.setattr("mora.evaluate.shared_prefixes.WORTH", 100)
    monkeypatch.setattr("mora.evaluate.backend.continues_from_cache", lambda model: False)
    contexts = [[*range(10, 50), i, *range(i)] for i in range(5, 13)] + [[*range(60, 100), i] for i in range(5, 11)]
    requests = [*REQUESTS, *((("", ""), context, option) for context in contexts for option in ([8], [9], [9, 10, 11]))]
    whole = backend(tiny)._loglikelihood_tokens(requests, disable_tqdm=True)
    monkeypatch.undo()
    monkeypatch.setattr("mora.evaluate.shared_prefixes.WORTH", 100)
    lm, shapes, room = backend(tiny), [], 4
    plain, trunk = lm._logits, tiny[0].base_model.forward

    def noted(*args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return trunk(*args, **kwargs)

    def limited(ids, *rest):
        if len(ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(ids, *rest)

    monkeypatch.setattr(tiny[0].base_model, "forward", noted)
    monkeypatch.setattr(lm, "_logits", limited)
    scored = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [tokens for rows, tokens in shapes if rows == 1].count(40) == 2
    assert max(tokens for rows, tokens in shapes if rows > 1) < 40
    room = 2
    for again in (scored, lm._loglikelihood_tokens(requests, disable_tqdm=True)):
        for (nats, said), (expected, all_said) in zip(again, whole, strict=True):
            assert nats == pytest.approx(expected, abs=1e-4)
            assert said == all_said


def test_one_token_options_share_a_forward_pass(tiny, monkeypatch):
    lm, calls = backend(tiny), []
    plain = lm._logits
    monkeypatch.setattr(lm, "_logits", lambda ids, *rest: (calls.append(len(ids)), plain(ids, *rest))[1])
    lm._loglikelihood_tokens([(("", ""), [5, 6], [t]) for t in (7, 8, 9)], disable_tqdm=True)
    assert calls == [1]


def test_pairs_are_encoded_as_lm_evals(tiny, monkeypatch):
    """A context with a trailing space, one with two options, one that begins with BOS, none, and token ids."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    pairs = [("a question: ", "yes"), ("a question:", " yes"), ("a question:", " no"), ("b", ""), ("", "text")]
    pairs.append((f"{tiny[1].bos_token}begun", " so"))
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    ours, theirs = backend(tiny), HFLM(tiny[0], tokenizer=tiny[1], batch_size=1)
    for lm in (ours, theirs):
        monkeypatch.setattr(lm, "_loglikelihood_tokens", lambda requests, **_: requests)
    singly: list[str] = []
    one_by_one = ours.tok_encode
    monkeypatch.setattr(ours, "tok_encode", lambda text, *a, **k: (singly.append(text), one_by_one(text, *a, **k))[1])
    assert ours.loglikelihood(requests, True) == theirs.loglikelihood(requests, True)
    assert sorted(singly) == [
        f"{tiny[1].bos_token}begun",
        f"{tiny[1].bos_token}begun so",
        "text",
    ]  # the rest in one call
    blocks = [Instance("loglikelihood", {}, ("\x00token-ids 1 2", " 3 4"), 0)]
    assert ours.loglikelihood(blocks, True)[0][1:] == ([1, 2], [3, 4])


def test_generation_is_greedy_cut_at_a_stop_text_and_resumed(tiny, tmp_path, monkeypatch):
    from lm_eval.api.instance import Instance

    model, tokenizer = tiny
    prompts = ["ab", "the quick brown fox", "12:"]

    def ask(lm, until):
        arguments = {"until": until, "do_sample": False, "max_gen_toks": 24}
        return lm.generate_until(
            [Instance("generate_until", {}, (p, arguments), i) for i, p in enumerate(prompts)], True
        )

    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    path = tmp_path / "journal.jsonl"
    assert ask(backend(tiny, response_cache=ResponseCache(path, "m")), ["\x00"]) == expected
    stop = expected[1][5]
    assert ask(backend(tiny), [stop]) == [text.split(stop)[0] for text in expected]
    monkeypatch.setattr("mora.evaluate.backend.greedy", None)  # all batches are in the response cache
    assert ask(backend(tiny, response_cache=ResponseCache(path, "m")), ["\x00"]) == expected


def test_a_batch_without_room_on_the_gpu_is_answered_in_halves(tiny, monkeypatch, capsys):
    from lm_eval.api.instance import Instance

    how = {"until": [], "do_sample": False, "max_gen_toks": 9}
    texts = ["ab", "the quick brown fox", "12:", "and so", "on"]
    prompts = [Instance("generate_until", {}, (text, how), i) for i, text in enumerate(texts)]
    pairs = [(("", ""), [5, 6, i], [7, i]) for i in range(8, 13)]
    lm = backend(tiny, batch_size=5)
    written, scored = lm.generate_until(prompts, True), lm._loglikelihood_tokens(pairs, disable_tqdm=True)
    greedy, logits = generation.greedy, lm._logits

    def leave_room_for(rows):
        def limited(work, ids, *arguments, **more):
            if len(ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return work(ids, *arguments, **more)

        monkeypatch.setattr(lm, "_logits", partial(limited, logits))
        monkeypatch.setattr(
            "mora.evaluate.backend.greedy", lambda model, *a, **kw: limited(partial(greedy, model), *a, **kw)
        )

    leave_room_for(2)
    assert lm.generate_until(prompts, True) == written
    for halves, whole in zip(lm._loglikelihood_tokens(pairs, disable_tqdm=True), scored, strict=True):
        assert halves[0] == pytest.approx(whole[0], abs=1e-5)
    said = "CUDA out of memory with 5 rows; retrying in two halves: CUDA out of memory"
    assert said in capsys.readouterr().err
    leave_room_for(0)
    with pytest.raises(torch.OutOfMemoryError):
        lm._loglikelihood_tokens(pairs, disable_tqdm=True)


def test_a_batch_with_too_large_a_cache_is_written_in_parts_each_kept(tiny, monkeypatch, tmp_path):
    from lm_eval.api.instance import Instance

    how = {"until": [], "do_sample": False, "max_gen_toks": 9}
    prompts = [
        Instance("generate_until", {}, (text, how), 0) for text in ("ab", "the quick brown fox", "12:", "so", "on")
    ]
    lm = backend(tiny, batch_size=5)
    whole, sizes = lm.generate_until(prompts, True), []
    config, longest = tiny[0].config, lm.tok_batch_encode(["the quick brown fox"])[0].shape[1]
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4  # bytes in fp32
    monkeypatch.setattr("mora.evaluate.backend.CACHE_OVER_WEIGHTS", 0)
    monkeypatch.setattr("mora.evaluate.backend.SMALL_CACHE", 2 * token * (longest + 9))

    def noted(model, ids, *arguments, **more):
        sizes.append(ids.shape)
        return generation.greedy(model, ids, *arguments, **more)

    monkeypatch.setattr("mora.evaluate.backend.greedy", noted)
    path = tmp_path / "journal.jsonl"
    assert backend(tiny, 5, response_cache=ResponseCache(path, "m")).generate_until(prompts, True) == whole
    assert [rows for rows, _ in sizes] == [1, 2, 2]
    assert sizes[0][1] == longest > sizes[2][1]  # the longest prompt is first; the others are not padded to its length
    assert len(path.read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize(
    ("n", "most", "sizes"), [(5, 9, [5]), (5, 5, [5]), (5, 4, [2, 3]), (500, 140, [125] * 4), (3, 1, [1, 1, 1])]
)
def test_parts_are_few_equal_and_in_order(n, most, sizes):
    parts = equal_parts(n, most)
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(n)[part]] == list(range(n))


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        (
            {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
            torch.bfloat16,
            (8 << 30) // (2 * 2 * 2 * 16 * 2 * 1000),
        ),
        (
            {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4},
            torch.float32,
            (8 << 30) // (2 * 2 * 4 * 16 * 4 * 1000),
        ),
    ],
)
def test_rows_at_once_follow_from_the_cache_of_a_token(shape, dtype, rows):
    config = LlamaConfig(vocab_size=11, intermediate_size=32, num_hidden_layers=2, **shape)
    assert rows_at_once(LlamaForCausalLM(config).to(dtype), 1000) == rows


def test_rows_at_once_of_a_model_without_attention_have_no_bound():
    config = MambaConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert rows_at_once(MambaForCausalLM(config), 1 << 40) > 1 << 40


LIMIT = generation.ROOM + 20  # beyond a growth of the cache


@pytest.fixture(scope="module")
def alone(tiny):
    """Prompts of unequal lengths, and what follows each where it is the only one."""
    model, tokenizer = tiny
    prompts = [tokenizer(text)["input_ids"] for text in ("ab", "the quick brown fox", "12:", "Z", "mora")]
    settings = {"max_new_tokens": LIMIT, "do_sample": False, "eos_token_id": None}
    return prompts, [model.generate(torch.tensor([p]), **settings)[0, len(p) :].tolist() for p in prompts]


@pytest.mark.parametrize("fixed", [False, True])
def test_rows_that_end_leave_the_batch_and_the_others_do_not_notice(tiny, alone, fixed):
    """Three ends in one batch: a token, a text, the limit."""
    model, (prompts, plain) = tiny[0], alone
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    assert generation.greedy(model, ids, mask, LIMIT, [], lambda rows: [False] * len(rows), fixed) == plain
    ends, sizes = [plain[0][20]], []

    def stopped(rows):
        sizes.append(len(rows))
        return [row[:3] == plain[1][:3] and len(row) >= 40 for row in rows]

    generated = generation.greedy(model, ids, mask, LIMIT, ends, stopped, fixed, logits_to_keep=1)
    cut = [row[: row.index(ends[0]) + 1] if ends[0] in row else row for row in plain]
    cut[1] = cut[1][:40]
    assert generated == cut
    assert sizes[0] == 5
    assert sizes[-1] < 4


def test_softmax_is_fp32_for_a_bf16_model(tiny):
    import copy

    half = copy.deepcopy(tiny[0]).bfloat16()
    (nats, _), *_ = backend((half, tiny[1]))._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    assert float(nats) != float(torch.tensor(float(nats)).bfloat16())


def test_a_cut_evaluation_goes_on_and_repeats_the_uninterrupted_one(tiny, tmp_path, monkeypatch):
    whole = backend(tiny, batch_size=1)._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    path = tmp_path / "journal.jsonl"
    backend(tiny, 1, response_cache=ResponseCache(path, "model"))._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]) + '{"key": "cut')
    lm, calls = backend(tiny, 1, response_cache=ResponseCache(path, "model")), []
    plain = lm._logits
    monkeypatch.setattr(lm, "_logits", lambda ids, *rest: (calls.append(1), plain(ids, *rest))[1])
    assert lm._loglikelihood_tokens(REQUESTS, disable_tqdm=True) == whole
    assert len(calls) == 2  # four distinct inputs, two of them already answered
    assert not ResponseCache(path, "another model").known


def test_memory_adapter_and_merged_model_agree(tiny, tmp_path):
    from peft import get_peft_model

    load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")[0].save_pretrained(tmp_path / "base")
    tiny[1].save_pretrained(tmp_path / "base")
    base, tokenizer = load_any(str(tmp_path / "base"), "fp32")
    model = get_peft_model(base, MoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "mora" in name:
                p.normal_(0, 0.05)
    model.save_pretrained(tmp_path / "adapter")
    in_memory = backend((model.eval(), tokenizer))._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    from_folder = backend(load_any(str(tmp_path / "adapter"), "fp32"))._loglikelihood_tokens(
        REQUESTS, disable_tqdm=True
    )
    untouched = backend(tiny)._loglikelihood_tokens(REQUESTS, disable_tqdm=True)
    values = [[float(nats) for nats, _ in scored] for scored in (in_memory, from_folder, untouched)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert values[0] != pytest.approx(values[2], abs=1e-2)


def test_options_of_several_inputs_are_scored_at_their_own_places():
    torch.manual_seed(0)
    logits, lengths = torch.randn(6, 11), [1, 3, 2]
    options = [[[4], [7]], [[1, 2, 3], [9], [5, 6]], [[8, 10]]]
    expected, start = [], 0
    for length, of in zip(lengths, options, strict=True):
        rows = logits[start : start + length].log_softmax(-1)
        start += length
        for ids in of:
            said = rows[-len(ids) :]
            nats = sum(said[i, token].item() for i, token in enumerate(ids))
            expected.append((pytest.approx(nats, rel=1e-6), said.argmax(-1).tolist() == ids))
    assert option_scores(logits, lengths, options) == expected
    logits[0, 7], logits[4:, :] = 9.0, 0.0
    logits[4, 8] = logits[5, 10] = 9.0
    greedy = [is_greedy for _, is_greedy in option_scores(logits, lengths, options)]
    assert (greedy[:2], greedy[-1]) == ([False, True], True)
