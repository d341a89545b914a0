"""Shortcuts that a model's structure allows. They are found by probing the model, not by its name."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from .attention import within, without_mask
from .cached_prefix import CachedPrefix

PROBED = 12  # tokens of a probe
_probed: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def causal_model(model: nn.Module) -> PreTrainedModel | None:
    """Return the model under PEFT's wrapper and DeepSpeed's engine; None if it is not a transformers model."""
    model = getattr(model, "module", model)  # DeepSpeed's engine
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base if isinstance(base, PreTrainedModel) else None


def plain_head(model: nn.Module) -> tuple[nn.Module, Tensor] | None:
    """Return the model under the head (the trunk) and the head's weight (V, H); None if logits are not their mere product.

    They are not if the model scales or caps its logits, or if the head has an adapter, a bias or a hook (with ZeRO-3, one
    that gathers the weight). `model` may be wrapped by PEFT, by DeepSpeed's engine, or by both.
    """
    causal = causal_model(model)
    if causal is None:
        return None
    head, trunk = causal.get_output_embeddings(), causal.base_model
    if type(head) is not nn.Linear or head.bias is not None or trunk is causal:
        return None
    if head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__:
        return None
    if not _ask(causal, "plain head", lambda: _multiplies(causal, trunk, head.weight)):
        return None
    return trunk, head.weight


def needs_no_mask(model: nn.Module, length: int) -> bool:
    """Return whether attention gives the same result without a mask, for causal sequences of `length` tokens.

    The sequences have no padding before their end. Without a mask, torch's attention sees all earlier tokens.
    """
    causal = causal_model(model)
    if causal is None or not _sees_everything(causal.config, length):
        return False
    return _ask(causal, "no mask", lambda: _equal_without_mask(causal))


def can_be_captured(model: nn.Module) -> bool:
    """Return whether a step can be a CUDA graph, since the host has no values to read and nothing to decide."""
    return plain_head(model) is not None and needs_no_mask(model, PROBED)


def takes_long_masks(model: nn.Module) -> bool:
    """Return whether the model accepts a four-dimensional mask, which captured decoding uses with its growing cache."""
    causal = causal_model(model)
    if causal is None or not _sees_everything(causal.config, None):
        return False
    return _ask(causal, "long masks", lambda: _equal_with_long_mask(causal))


def trains_without_padding(model: nn.Module) -> bool:
    """Return whether sequences laid end to end in one row give the same results as each of them alone."""
    causal = causal_model(model)
    if causal is None or not _sees_everything(causal.config, None):
        return False
    return _ask(causal, "no padding", lambda: _equal_end_to_end(causal))


def continues_from_cache(model: nn.Module) -> bool:
    """Return whether hidden states stay the same if the keys and values of the first tokens come from a `CachedPrefix`."""
    causal = causal_model(model)
    if causal is None or plain_head(model) is None or not _sees_everything(causal.config, None):
        return False
    return _ask(causal, "beginnings", lambda: _equal_after_prefix(causal))


def fast_paths(model: nn.Module, padding_free: bool, fused_layers: bool, captures: bool) -> dict[str, bool]:
    """Return the fast paths of a run with this model.

    `captures` says whether the run's hardware captures the steps of models that allow it.
    """
    return {
        "rows without padding": padding_free,
        "fused norms and gates": fused_layers,
        "head and loss in chunks": plain_head(model) is not None,
        "attention without mask": can_be_captured(model),
        "captured steps": captures and can_be_captured(model),
        "shared beginnings": continues_from_cache(model),
        "captured decoding": next(model.parameters()).device.type == "cuda" and takes_long_masks(model),
    }


def _ask(causal: PreTrainedModel, question: str, answer: Any) -> bool:
    """Return `answer()`, asked once per model, with a handful of tokens. No gradient is left, nor another random state."""
    known = _probed.setdefault(causal, {})
    if question not in known:
        modes = [(module, module.training) for module in causal.modules()]
        causal.eval()
        try:
            with torch.no_grad():
                known[question] = answer()
        except (TypeError, ValueError, AttributeError, IndexError, NotImplementedError, RuntimeError):
            known[question] = False  # a model that cannot be probed does not have the path
        finally:
            for module, training in modes:
                module.training = training
    return known[question]


def _multiplies(causal: PreTrainedModel, trunk: nn.Module, weight: Tensor) -> bool:
    """Return whether logits are hidden @ weight.T. They are tested with hidden states so large that a cap would show.

    The trunk computes nothing for this.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight)
    product = F.linear(hidden, weight)
    hidden = hidden * (100 / product.float().abs().max().clamp(min=1e-6)).to(weight.dtype)
    before = trunk.__dict__.get("forward")
    trunk.__dict__["forward"] = lambda *_, **__: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
    try:
        logits = causal(input_ids=torch.ones((1, 4), dtype=torch.long, device=weight.device), use_cache=False).logits
    finally:
        del trunk.__dict__["forward"]
        if before is not None:
            trunk.__dict__["forward"] = before
    return _close(logits, F.linear(hidden, weight))


def _sees_everything(config: Any, length: int | None) -> bool:
    """Return whether attention is torch's, without a window narrower than `length` tokens (None: without any window)."""
    if getattr(config, "_attn_implementation", "") != "sdpa":
        return False
    if getattr(config, "use_sliding_window", True) is False:
        return True
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(width is None or (length is not None and length <= width) for width in widths)


def _ids(causal: PreTrainedModel) -> Tensor:
    """Return ids (2, PROBED), without special tokens if there are enough others."""
    ids = torch.arange(2 * PROBED) % max(1, causal.config.vocab_size // 2) + causal.config.vocab_size // 4
    return ids.view(2, PROBED).to(causal.device)


def _equal_without_mask(causal: PreTrainedModel) -> bool:
    trunk, ids = causal.base_model, _ids(causal)
    usual = trunk(input_ids=ids, use_cache=False).last_hidden_state
    with without_mask(trunk):
        return _close(trunk(input_ids=ids, use_cache=False).last_hidden_state, usual)


def _equal_with_long_mask(causal: PreTrainedModel) -> bool:
    """Return whether a mask (B, 1, T, T) gives the last token the usual logits, also in a row that is padded at the left."""
    ids = _ids(causal)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    usual = causal(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
    seen = torch.ones((PROBED, PROBED), dtype=torch.bool, device=ids.device).tril() & mask[:, None, None, :].bool()
    given = causal(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False).logits[:, -1]
    return _close(given, usual)


def _equal_end_to_end(causal: PreTrainedModel) -> bool:
    trunk, ids = causal.base_model, _ids(causal)
    usual = trunk(input_ids=ids, use_cache=False).last_hidden_state
    row, positions = ids.flatten()[None], torch.arange(PROBED, device=ids.device).repeat(2)[None]
    bounds = torch.tensor([0, PROBED, 2 * PROBED], dtype=torch.int32, device=ids.device)
    with within(trunk, bounds):
        given = trunk(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state
    return _close(given.view_as(usual), usual)


def _equal_after_prefix(causal: PreTrainedModel) -> bool:
    trunk, (ids, other) = causal.base_model, _ids(causal)
    half = PROBED // 2
    prefix = CachedPrefix(trunk, ids[:half].tolist())
    both = torch.stack([ids, torch.cat([ids[:half], other[half:]])])
    usual = trunk(input_ids=both, use_cache=False).last_hidden_state[:, half:]
    return all(_close(prefix.continued(both[:, half:]), usual) for _ in range(2))


def _close(one: Tensor, other: Tensor) -> bool:
    """Return whether both are finite and equal up to the rounding of their dtype."""
    tolerance = 2e-2 if one.dtype == torch.bfloat16 else 1e-3
    scale = other.float().abs().max()
    return bool(((one.float() - other.float()).abs().max() <= tolerance * scale).item())
