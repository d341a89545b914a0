"""lm-eval's Hugging Face backend with what it lacks: token counts, logits only where they are scored, a journal."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from .choices import LogLikelihood
from .journal import Journal

TOKEN_IDS = "\x00token-ids "  # a text that starts so is a list of token ids: blocks of packed text have no other form
PROMPT_TOKENS = 1024  # of a prompt are kept in any case; MATH's answers alone may have 2 048
SHORTEST = 0.8  # of the longest input's length, within a batch
STOP_EVERY = 8  # tokens between two looks at the generated text

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, context ids, continuation ids


class Backend(HFLM):
    """HFLM for a causal model in memory, one process. Log-softmax in fp32 whatever the model's dtype.

    Requests that share all input tokens, as the one-token options of a question do, share a forward pass. Batches are sorted
    by length, longest first.
    """

    _max_length: int

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        max_length: int,
        journal: Journal,
    ):
        model.tie_weights = _leave_tied  # type: ignore[assignment]
        try:  # HFLM ties anew, which PEFT's modules_to_save on a tied embedding does not survive
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
        self.journal = journal
        self._last: tuple[str, list[int]] = ("", [])

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        if string.startswith(TOKEN_IDS):
            return [int(i) for i in string.removeprefix(TOKEN_IDS).split()]
        return super().tok_encode(string, *args, **kwargs)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval's; a context is tokenised once for all its options, which follow each other."""
        stripped = context.rstrip()
        if stripped != self._last[0]:
            self._last = (stripped, self.tok_encode(stripped))
        known = self._last[1]
        return known, self.tok_encode(context + continuation)[len(known) :]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[LogLikelihood, bool]]:
        by_input: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            by_input.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(i)
        inputs = sorted(by_input, key=lambda ids: (-len(ids), ids))
        answers: dict[int, tuple[LogLikelihood, bool]] = {}
        batches = _batches(inputs, override_bs or int(self.batch_size))
        for batch in tqdm(batches, desc="log-likelihoods", disable=disable_tqdm or None):
            wanted = [[requests[i][2] for i in by_input[ids]] for ids in batch]
            found = self.journal.answer([batch, wanted], partial(self._score, batch, wanted))
            owners = [i for ids in batch for i in by_input[ids]]
            for i, (nats, greedy) in zip(owners, found, strict=True):
                answers[i] = (LogLikelihood(nats, len(requests[i][2])), greedy)
        return [answers[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, inputs: list[tuple[int, ...]], wanted: list[list[list[int]]]) -> list[tuple[float, bool]]:
        """(nats, is the argmax throughout) of every wanted continuation of every input, in order."""
        longest = max(map(len, inputs))
        ids_BT = torch.zeros((len(inputs), longest), dtype=torch.long)
        for row, ids in enumerate(inputs):
            ids_BT[row, : len(ids)] = torch.tensor(ids)  # padded at the right, where causal attention looks at nothing
        ends = [len(ids) for ids in inputs]
        first = min(end - len(w) for end, options in zip(ends, wanted, strict=True) for w in options)
        logits_BTV = self._logits(ids_BT.to(self.device), first)
        nats, greedy = [], []
        for row, (end, options) in enumerate(zip(ends, wanted, strict=True)):
            start = end - max(map(len, options)) - first
            logprobs_TV = torch.log_softmax(logits_BTV[row, start : end - first].float(), dim=-1)
            said_T = logprobs_TV.argmax(-1)
            for option in options:
                target_T = torch.tensor(option, device=self.device)
                nats.append(logprobs_TV[-len(option) :].gather(1, target_T[:, None]).sum())
                greedy.append((said_T[-len(option) :] == target_T).all())
        return list(zip(torch.stack(nats).tolist(), torch.stack(greedy).tolist(), strict=True))

    def _logits(self, ids_BT: Tensor, first: int) -> Tensor:
        """Logits of positions from `first` on."""
        if not self.keeps_logits:
            return self.model(input_ids=ids_BT, use_cache=False).logits[:, first:]
        kept = torch.arange(first, ids_BT.shape[1], device=ids_BT.device)
        return self.model(input_ids=ids_BT, use_cache=False, logits_to_keep=kept).logits

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """As HFLM's, with room for PROMPT_TOKENS of prompt beside the longest answer asked for."""
        window = self._max_length
        longest = max(request.args[1].get("max_gen_toks", 0) for request in requests)
        self._max_length = max(window, longest + PROMPT_TOKENS)
        try:
            return super().generate_until(requests, disable_tqdm=disable_tqdm)
        finally:
            self._max_length = window

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        """Prompt and generated ids, greedy unless `kwargs` sample; rows that met a stop text are filled with padding."""

        def generate() -> list[list[int]]:
            done = StopOnText(self.tokenizer, stop, context.shape[1], context.shape[0])
            options = {k: v for k, v in kwargs.items() if v is not None}
            if not options.get("do_sample"):
                options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            made = self.model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=StoppingCriteriaList([done]),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=True,
                **options,
            )
            return made[:, context.shape[1] :].tolist()

        mask = kwargs.get("attention_mask")
        prompts = [context.tolist(), mask.tolist() if mask is not None else None]
        answer = self.journal.answer([prompts, max_length, stop, kwargs.get("do_sample")], generate)
        return torch.cat([context, torch.tensor(answer, dtype=torch.long, device=context.device)], dim=1)


class StopOnText(StoppingCriteria):
    """Marks the rows whose text holds one of `stop`. Looks once in STOP_EVERY tokens: lm-eval cuts the text in any case."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: list[str], n_prompt: int, rows: int):
        self.tokenizer, self.stop, self.n_prompt = tokenizer, [s for s in stop if s], n_prompt
        self.window = STOP_EVERY + max((len(s) for s in self.stop), default=0)
        self.done = [False] * rows

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if (input_ids.shape[1] - self.n_prompt) % STOP_EVERY == 0:
            tails = input_ids[:, max(self.n_prompt, input_ids.shape[1] - self.window) :].tolist()
            waiting = [row for row, done in enumerate(self.done) if not done]
            for row, text in zip(waiting, self.tokenizer.batch_decode([tails[r] for r in waiting]), strict=True):
                self.done[row] = any(s in text for s in self.stop)
        return torch.tensor(self.done, device=input_ids.device)


def _batches(inputs: list[tuple[int, ...]], size: int) -> list[list[tuple[int, ...]]]:
    """Of at most `size`, from inputs sorted longest first: none is much shorter than the first, for logits span the gap."""
    batches: list[list[tuple[int, ...]]] = []
    for ids in inputs:
        if not batches or len(batches[-1]) == size or len(ids) < SHORTEST * len(batches[-1][0]):
            batches.append([])
        batches[-1].append(ids)
    return batches


def _leave_tied(*args: Any, **kwargs: Any) -> None:
    """In place of `tie_weights` while HFLM is built."""
