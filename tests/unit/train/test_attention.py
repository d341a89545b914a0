"""Attention of rows that are one sequence each, as it is under the capture of a CUDA graph."""

import torch
from tiny_runs import tiny_config
from torch.nn import functional as F
from transformers import masking_utils

from mora.data.batches import Batch
from mora.models.load import load_model
from mora.models.losses import token_losses


def masks_of(model, batch, monkeypatch):
    """The losses, and the mask of every attention."""
    token_losses(model, batch)  # asks the model once whether it needs a mask
    seen, real = [], F.scaled_dot_product_attention

    def attend(*args, attn_mask=None, **kwargs):
        seen.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        losses = token_losses(model, batch)
    return losses, seen


def test_no_mask_is_made_while_a_graph_is_captured_and_packed_rows_keep_theirs(monkeypatch):
    model = load_model(tiny_config("fft").model, "fp32")[0].eval()
    ids = torch.randint(3, 100, (2, 12))
    with torch.no_grad():
        plain = model(ids, labels=ids).loss
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    losses, masks = masks_of(model, Batch(ids, ids), monkeypatch)
    assert masks == [None] * model.config.num_hidden_layers
    torch.testing.assert_close(losses.mean(), plain)
    assert model.config._attn_implementation == "sdpa"
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    _, masks = masks_of(model, Batch(ids, ids, positions), monkeypatch)
    assert all(mask is not None for mask in masks)
