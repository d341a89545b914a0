"""lm-eval's Hugging Face backend, with token counts, logits only where they are scored, and a response cache added."""

from __future__ import annotations

import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mora.data.batches import Batch
from mora.data.tokens import without_appended_eos
from mora.errors import DataError, NonFiniteError
from mora.models.cached_prefix import CachedPrefix
from mora.models.fused_loss import groups
from mora.models.losses import hidden_states
from mora.models.structure import continues_from_cache, plain_head
from mora.models.tokenizers import end_ids

from .choices import LogLikelihood
from .generation import CHECK_EVERY, NanLogits, fixed_steps_suit, greedy
from .response_cache import ResponseCache
from .shared_prefixes import by_shared_prefix
from .window import by_answer, with_answer

TOKEN_IDS = "\x00token-ids "  # begins a text that is a list of token ids, the only form of a block of packed text
TEXTS_AT_ONCE = 1000  # texts per call of the tokenizer, which is slower with the millions of tokens of all in memory
SHORTEST = 0.8  # the shortest input of a batch has at least this share of the longest one's length
CACHE_OVER_WEIGHTS = 2  # bytes of cache per byte of weights: a step reads both, so beyond this more rows gain little
SMALL_CACHE = 8 << 30  # bytes of cache up to which no batch is split; while its buffers grow, it takes up to twice that

T = TypeVar("T")
Request = tuple[tuple[str, str], list[int], list[int]]  # texts, context ids, continuation ids


class Backend(HFLM):
    """HFLM for a causal model in memory, in one process. The log-softmax is in fp32 whatever the model's dtype.

    Requests with equal input tokens, such as the one-token options of a question, share a forward pass. Inputs that begin
    alike, such as questions after the same examples, share the forward pass of their prefix. Batches are sorted by
    length, longest first.
    """

    _max_length: int

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_length: int,
        response_cache: ResponseCache,
        length_limit: int | None = None,
    ):
        model.tie_weights = _leave_tied  # type: ignore[assignment]
        try:  # HFLM ties weights again, which breaks PEFT's modules_to_save on a tied embedding
            super().__init__(
                pretrained=model,  # type: ignore[arg-type]
                tokenizer=tokenizer,  # type: ignore[arg-type]
                batch_size=batch_size,
                max_length=max_length,
                softmax_dtype="float32",
            )
        finally:
            del model.tie_weights
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self.keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        self.response_cache = response_cache
        self.length_limit = length_limit  # the most tokens of prompt and answer; None: as many as a task asks for
        self._pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self._asked: list[Any] = []  # the requests of lm-eval that are being answered
        self._prompts: list[str] = []  # the prompts of the batch that is being generated

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        if string.startswith(TOKEN_IDS):
            return [int(i) for i in string.removeprefix(TOKEN_IDS).split()]
        return without_appended_eos(self.tokenizer, string, super().tok_encode(string, *args, **kwargs))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[LogLikelihood, bool]]:
        """Score the requests as lm-eval does, but tokenise all of them first.

        Raises:
            DataError: An answer has no tokens, or more than are read at once.
            NonFiniteError: A log-likelihood is not finite.
        """
        self._asked = requests
        pairs = [request.args for request in requests]
        with _tokenizers_on_all_cores():
            for start in range(0, len(pairs), TEXTS_AT_ONCE):
                self._encode_pairs([pair for pair in pairs[start : start + TEXTS_AT_ONCE] if pair[0]])
        try:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        finally:
            self._pairs.clear()
            self._asked = []

    def _encode_pairs(self, pairs: list[tuple[str, str]]) -> None:
        """Store the result of `_encode_pair` for each pair. A context is tokenised once for all its options."""
        contexts = list(dict.fromkeys(context.rstrip() for context, _ in pairs))
        ids = self._encode_texts([*contexts, *(context + continuation for context, continuation in pairs)])
        known = dict(zip(contexts, ids, strict=False))
        for pair, both in zip(pairs, ids[len(contexts) :], strict=True):
            context = known[pair[0].rstrip()]
            self._pairs[pair] = context, both[len(context) :]

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        """Return `tok_encode` of each text. All texts of the usual form take one call of the tokenizer."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        plain = [text for text in texts if not text.startswith((TOKEN_IDS, bos))]
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        encoded = self.tokenizer(plain, return_attention_mask=False, **special)["input_ids"] if plain else []
        encoded = [without_appended_eos(self.tokenizer, *both) for both in zip(plain, encoded, strict=True)]
        ids = dict(zip(plain, encoded, strict=True))
        return [ids[text] if text in ids else self.tok_encode(text) for text in texts]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self._pairs.get((context, continuation)) or super()._encode_pair(context, continuation)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[LogLikelihood, bool]]:
        by_input: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise DataError(
                    f"{self._place(i)}its answer has no tokens: it is empty, or the tokenizer merges it with the prompt's "
                    "end; leave the task out, or give the answer a text that begins with a token of its own"
                )
            if len(continuation) > self.max_length:
                raise DataError(
                    f"{self._place(i)}its answer has {len(continuation)} tokens, expected at most {self.max_length}, which "
                    "are read at once: raise --max-length, or leave the task out if the model has no more positions"
                )
            by_input.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(i)
        answers: dict[int, tuple[LogLikelihood, bool]] = {}
        longest = {ids: max(len(requests[i][2]) for i in rows) for ids, rows in by_input.items()}
        batches = self._batches(longest, override_bs or int(self.batch_size))
        for prefix, batch in tqdm(batches, desc="log-likelihoods", disable=disable_tqdm or None):
            wanted = [[requests[i][2] for i in by_input[ids]] for ids in batch]
            scored = self.response_cache.answer(
                [batch, wanted], partial(by_halves, partial(self._score, prefix, batch, wanted), len(batch))
            )
            owners = [i for ids in batch for i in by_input[ids]]
            for i, (nats, is_greedy) in zip(owners, scored, strict=True):
                if not math.isfinite(nats):
                    raise _not_finite(self._place(i), f"a log-likelihood is {nats}")
                answers[i] = (LogLikelihood(nats, len(requests[i][2])), is_greedy)
        return [answers[i] for i in range(len(requests))]

    def _batches(
        self, longest: dict[tuple[int, ...], int], size: int
    ) -> list[tuple[CachedPrefix | None, list[tuple[int, ...]]]]:
        """Return batches of inputs, each with the prefix that its inputs share, if any.

        `longest` holds, for each input, the number of tokens of its longest option.
        """
        head = plain_head(self.model) if continues_from_cache(self.model) else None
        batches: list[tuple[CachedPrefix | None, list[tuple[int, ...]]]] = []
        for shared, members in by_shared_prefix(longest) if head else [(0, list(longest))]:
            prefix = CachedPrefix(head[0], members[0][:shared]) if head and shared else None
            batches += [(prefix, batch) for batch in _batches(members, size, shared)]
        return batches

    @torch.no_grad()
    def _score(
        self,
        prefix: CachedPrefix | None,
        inputs: list[tuple[int, ...]],
        wanted: list[list[list[int]]],
        rows: slice,
    ) -> list[tuple[float, bool]]:
        """Return, for each wanted continuation of each input in `rows`, its nats and whether each token is the argmax."""
        skipped = prefix.length if prefix else 0
        inputs, wanted = [ids[skipped:] for ids in inputs[rows]], wanted[rows]
        longest = max(map(len, inputs))
        ids_BT = torch.zeros((len(inputs), longest), dtype=torch.long)
        for row, ids in enumerate(inputs):
            ids_BT[row, : len(ids)] = torch.tensor(ids)  # padded at the right, which causal attention does not see
        ends = [len(ids) for ids in inputs]
        spans = [slice(end - max(map(len, options)), end) for end, options in zip(ends, wanted, strict=True)]
        scored, first = [], 0
        for lengths, logits_NV in self._logits(ids_BT.to(self.device), spans, prefix):
            scored += option_scores(logits_NV, lengths, wanted[first : first + len(lengths)])
            first += len(lengths)
        return scored

    def _logits(
        self, ids_BT: Tensor, spans: list[slice], prefix: CachedPrefix | None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the logits (N, V) of the spans of some rows, after the lengths of these spans.

        There are many rows at a time if the head is a plain matrix product, else one.
        """
        states = hidden_states(self.model, Batch(ids_BT, ids_BT), prefix)
        if states is None:
            first = min(span.start for span in spans) if self.keeps_logits else 0
            kept = {"logits_to_keep": torch.arange(first, ids_BT.shape[1], device=ids_BT.device)} if first else {}
            logits_BTV = self.model(input_ids=ids_BT, use_cache=False, **kept).logits
            for logits_TV, span in zip(logits_BTV, spans, strict=True):
                yield [span.stop - span.start], logits_TV[span.start - first : span.stop - first]
            return
        hidden_BTH, weight_VH = states
        rows = [hidden_TH[span] for hidden_TH, span in zip(hidden_BTH, spans, strict=True)]
        lengths = [len(row) for row in rows]
        for group in groups(lengths, weight_VH):
            yield lengths[group], F.linear(torch.cat(rows[group]), weight_VH)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate as HFLM does, but cut each prompt as `by_answer` says. Raises NonFiniteError."""
        window, self._asked = self._max_length, requests
        texts: dict[int, str] = {}
        try:
            for (answer, together), places in by_answer(requests, window, self.length_limit).items():
                self._max_length = together
                asked = [with_answer(requests[place], answer) for place in places]
                quiet = disable_tqdm or not sys.stderr.isatty()
                texts.update(zip(places, super().generate_until(asked, disable_tqdm=quiet), strict=True))
        finally:
            self._max_length = window
            self._asked = []
        return [texts[place] for place in range(len(requests))]

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._prompts = list(strings)
        ids_BT, mask_BT = super().tok_batch_encode(strings, *args, **kwargs)
        rows = zip(strings, ids_BT[:, -2:].tolist(), strict=True)
        if all(without_appended_eos(self.tokenizer, text, ids) != ids for text, ids in rows):
            return ids_BT[:, :-1], mask_BT[:, :-1]
        return ids_BT, mask_BT

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        """Return prompts and generated ids, padded after the end of a row.

        Generation is greedy; if `kwargs` ask for sampling, it is left to HFLM. A batch whose keys and values would need too
        much memory is generated in equal parts.
        """
        if kwargs.get("do_sample"):
            return super()._model_generate(context, max_length, stop, **kwargs)
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(context) if mask is None else mask
        new_tokens, ends = max_length - context.shape[1], end_ids(self.model, self.tokenizer)

        def generate(rows: slice) -> list[list[int]]:
            last: dict[str, Any] = {"logits_to_keep": 1} if self.keeps_logits else {}
            last["fixed"] = fixed_steps_suit(self.model)
            stopped = partial(self._stopped, [text for text in stop if text])
            used = mask[rows].any(0)  # leaves out columns that only longer prompts of other rows need
            try:
                return greedy(self.model, context[rows, used], mask[rows, used], new_tokens, ends, stopped, **last)
            except NanLogits as error:
                prompt = self._prompts[rows][error.row]
                place = next((i for i, request in enumerate(self._asked) if request.args[0] == prompt), -1)
                raise _not_finite(self._place(place), "a logit is NaN") from error

        generated: list[list[int]] = []
        for rows in equal_parts(len(context), rows_at_once(self.model, max_length)):
            what = [context[rows].tolist(), mask[rows].tolist(), max_length, stop, None]
            generated += self.response_cache.answer(what, partial(by_halves, generate, rows.stop, rows.start))
        longest = max(map(len, generated))
        padded = [ids + [self.tokenizer.pad_token_id] * (longest - len(ids)) for ids in generated]
        return torch.cat([context, torch.tensor(padded, dtype=torch.long, device=context.device)], dim=1)

    def _place(self, number: int) -> str:
        """Return, to begin a message, the task and document of a request that is being answered, if it is known."""
        if not 0 <= number < len(self._asked):
            return ""
        request = self._asked[number]
        return f"task {request.task_name}, document {request.doc_id}: "

    def _stopped(self, stop: list[str], rows: list[list[int]]) -> list[bool]:
        """Return, for each row, whether its last tokens contain one of `stop`. lm-eval cuts the text there in any case."""
        window = CHECK_EVERY + max(map(len, stop), default=0)
        return [any(s in text for s in stop) for text in self.tokenizer.batch_decode([ids[-window:] for ids in rows])]


def option_scores(logits_NV: Tensor, lengths: list[int], options: list[list[list[int]]]) -> list[tuple[float, bool]]:
    """Return, for every option in order, its nats and whether each of its tokens is the argmax.

    Args:
        logits_NV: The logits at the last positions of each input, one input after the other.
        lengths: How many of the N positions belong to each input.
        options: The options of each input, as lists of token ids. An option of t tokens is scored at the last t positions.
    """
    ends = itertools.accumulate(lengths)
    places = [
        (end - len(ids) + i, t) for end, of in zip(ends, options, strict=True) for ids in of for i, t in enumerate(ids)
    ]
    place_M, token_M = torch.tensor(places, device=logits_NV.device).T  # all take one copy to the device, and two back
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    nats_M = logprobs_NV[place_M, token_M].tolist()
    right_M = (logprobs_NV.argmax(-1)[place_M] == token_M).tolist()
    stops = [0, *itertools.accumulate(len(ids) for of in options for ids in of)]
    return [(math.fsum(nats_M[a:b]), all(right_M[a:b])) for a, b in itertools.pairwise(stops)]


def by_halves(answer: Callable[[slice], list[T]], stop: int, start: int = 0) -> list[T]:
    """Return `answer(slice(start, stop))`, computed in halves if the GPU's memory is too small for all rows.

    Raises:
        torch.OutOfMemoryError: A single row does not fit.
    """
    try:
        return answer(slice(start, stop))
    except torch.OutOfMemoryError as error:
        if stop - start == 1:
            raise
        reason = str(error).splitlines()[0]
    torch.cuda.empty_cache()  # only here are the error and what its frames hold gone
    print(f"CUDA out of memory with {stop - start} rows; retrying in two halves: {reason}", file=sys.stderr, flush=True)
    middle = (start + stop) // 2
    return by_halves(answer, middle, start) + by_halves(answer, stop, middle)


def rows_at_once(model: Any, tokens: int) -> int:
    """Return how many rows of `tokens` tokens a batch may have, given the memory of their keys and values.

    The number is the same on every GPU.
    """
    config = model.config.get_text_config()
    queries = getattr(config, "num_attention_heads", None)
    if queries is None:  # without attention, nothing grows with the tokens
        return sys.maxsize
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * tokens
    weights = sum(p.nbytes for p in model.parameters())
    return max(1, max(CACHE_OVER_WEIGHTS * weights, SMALL_CACHE) // row)


def equal_parts(n: int, max_size: int) -> list[slice]:
    """Cut n rows, in order, into the fewest slices of at most `max_size` rows. Their sizes differ by at most one."""
    parts = -(-n // max_size)
    ends = [n * (i + 1) // parts for i in range(parts)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _batches(inputs: list[tuple[int, ...]], size: int, shared: int = 0) -> list[list[tuple[int, ...]]]:
    """Sort inputs, longest first, into batches of at most `size` inputs whose lengths do not differ much.

    If they did, logits would be computed over the difference. The `shared` tokens of their prefix do not count.
    """
    batches: list[list[tuple[int, ...]]] = []
    for ids in sorted(inputs, key=lambda ids: (-len(ids), ids)):
        short = bool(batches) and len(ids) - shared < SHORTEST * (len(batches[-1][0]) - shared)
        if not batches or len(batches[-1]) == size or short:
            batches.append([])
        batches[-1].append(ids)
    return batches


def _not_finite(place: str, what: str) -> NonFiniteError:
    return NonFiniteError(f"{place}{what}: the weights are damaged, or training diverged")


@contextmanager
def _tokenizers_on_all_cores() -> Iterator[None]:
    """Context manager: let tokenizers use all cores. Elsewhere they use one, since processes fork or are many."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = before or "false"


def _leave_tied(*args: Any, **kwargs: Any) -> None:
    """Do nothing, in place of `tie_weights` while HFLM is made."""
