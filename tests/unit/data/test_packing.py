"""Packed and unpacked give the same logits and the same loss; blocks are cut where they should be."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mora.config.cached_composition import compose_cached as compose
from mora.data import packing
from mora.data.batches import Batches, balanced, collate
from mora.data.packing import even
from mora.data.samples import IGNORE, Sample, StoredSamples, write_shard
from mora.models.load import load_model
from mora.models.losses import token_losses


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    made = []
    for length in (5, 17, 9, 30, 12, 3):
        ids = rng.integers(3, 100, length).tolist()
        prompt = length // 3
        made.append(Sample(ids, [IGNORE] * prompt + ids[prompt:], prompt))
    return made


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_members_do_not_see_each_other(samples, attention):
    model, _ = load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
    model.eval()
    model.set_attn_implementation(attention)
    groups = packing.bins([len(s.input_ids) for s in samples], 40)
    assert sorted(i for group in groups for i in group) == list(range(len(samples)))
    assert len(groups) == 2
    packed = [packing.join([samples[i] for i in group]) for group in groups]
    batch = collate(packed, pad_id=0)
    alone = collate(samples, pad_id=0)
    with torch.no_grad():
        together = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        apart = model(input_ids=alone.input_ids, use_cache=False).logits
        for row, group in enumerate(groups):
            for i, start in zip(group, packed[row].starts, strict=True):
                length = len(samples[i].input_ids)
                torch.testing.assert_close(
                    together[row, start : start + length], apart[i, :length], atol=1e-5, rtol=1e-5
                )
        torch.testing.assert_close(token_losses(model, batch).sum(), token_losses(model, alone).sum())
    assert sum(s.n_loss for s in packed) == sum(s.n_loss for s in samples)


def test_without_positions_the_members_would_see_each_other(samples):
    """So that the test above can fail."""
    model, _ = load_model(compose(["task=uuid", "method=none", "scale=smoke"]).model, "fp32")
    batch = collate([packing.join(samples[:2])], pad_id=0)
    with torch.no_grad():
        seen = model(input_ids=batch.input_ids, use_cache=False).logits
        kept = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    assert (seen - kept)[0, 5:].abs().max() > 1e-2


def test_blocks_are_cut_anywhere_and_the_rest_is_left_out():
    made = list(packing.blocks([[1, 2, 3, 4, 5], [6], [7, 8, 9, 10]], 4))
    assert [s.input_ids for s in made] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert all(s.labels == s.input_ids for s in made)


def test_bins_never_overflow_and_waste_little():
    lengths = np.random.default_rng(1).integers(1, 512, 3000)
    groups = packing.bins(lengths, 512)
    assert all(sum(lengths[i] for i in group) <= 512 for group in groups)
    assert sorted(i for group in groups for i in group) == list(range(3000))
    assert len(groups) <= 1.02 * lengths.sum() / 512 + 1
    with pytest.raises(ValueError, match="sample 0 has 6 tokens, more than 5"):
        packing.bins([6], 5)


def test_positions_start_anew_at_every_member():
    assert packing.positions((0, 2, 5), 8).tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


def test_samples_come_back_from_disk_as_they_were(tmp_path, samples):
    packed = packing.join(samples[:3])
    write_shard(tmp_path / "a", samples[:4], vocabulary=104)
    write_shard(tmp_path / "b", [packed], vocabulary=100_000)
    write_shard(tmp_path / "c", packing.blocks([[1, 2, 3, 4]], 2), vocabulary=104)
    stored = StoredSamples([tmp_path / x for x in "abc"])
    wanted = [
        *(Sample(s.input_ids, s.labels) for s in samples[:4]),
        packed,
        Sample([1, 2], [1, 2]),
        Sample([3, 4], [3, 4]),
    ]
    assert list(stored) == wanted
    assert stored[-1] == wanted[-1]
    assert stored.longest == 31
    assert stored.tokens == sum(len(s.input_ids) for s in wanted)
    assert stored.loss_tokens == sum(s.n_loss for s in wanted)
    assert not (tmp_path / "c" / "flags.npy").exists()
    assert np.load(tmp_path / "a" / "ids.npy").dtype == np.uint16


def test_a_micro_batch_is_padded_to_its_own_longest(samples):
    batches = Batches([Sample([1] * n, [1] * n) for n in (10, 70, 300)], 0, 1, 1, seed=0)
    widths = {batches.indices(step)[0]: next(batches.micro_batches(step)).input_ids.shape[1] for step in range(3)}
    assert widths == {0: 64, 1: 128, 2: 300}


def test_several_micro_batches_of_a_step_have_sequences_of_like_length():
    """The whole step in one piece keeps its order, and both hold the same samples."""
    samples = [Sample([n] * n, [n] * n) for n in (300, 10, 200, 70, 20, 130, 250, 60)]
    micros = list(Batches(samples, 0, 8, 2, seed=0).micro_batches(0))
    assert [batch.input_ids.shape[1] for batch in micros] == [64, 128, 256, 300]
    whole = next(Batches(samples, 0, 8, 8, seed=0).micro_batches(0)).input_ids[:, 0].tolist()
    assert whole == [len(samples[i].input_ids) for i in Batches(samples, 0, 8, 8, seed=0).indices(0)] != sorted(whole)
    assert sorted(whole) == [n for batch in micros for n in batch.input_ids[:, 0].tolist()]


def test_micro_batches_by_tokens_hold_the_step_in_few_even_passes():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 0.45, 64), 60, 1024).astype(int)
    batches = Batches([Sample([i] * n, [i] * n) for i, n in enumerate(lengths)], 0, 64, 64, 0, micro_batch_tokens=8192)
    micros = list(batches.micro_batches(0))
    sizes = [batch.input_ids.numel() for batch in micros]
    assert max(sizes) <= 8192
    assert len(sizes) == -(-int(lengths.sum() * 1.2) // 8192), "more passes than a fifth of padding explains"
    assert max(sizes) < 1.2 * min(sizes)
    assert sorted(i for batch in micros for i in batch.input_ids[:, 0].tolist()) == list(range(64))


@pytest.mark.parametrize("ranks", [1, 4])
def test_rows_without_padding_hold_the_step_in_few_even_rows_of_one_length(ranks):
    lengths = np.clip(np.random.default_rng(0).lognormal(4.8, 0.7, 64), 5, 1024).astype(int)
    samples = [Sample([i] * n, [i] * n) for i, n in enumerate(lengths, 1)]
    rows = list(
        Batches(samples, 0, 64, 64, 0, micro_batch_tokens=4096, ranks=ranks, padding_free=True).micro_batches(0)
    )
    assert len(rows) % ranks == 0
    assert {row.input_ids.shape for row in rows} == {(1, rows[0].input_ids.shape[1])}
    assert rows[0].input_ids.shape[1] <= 4096
    assert sum(row.input_ids.numel() for row in rows) < 1.3 * lengths.sum()
    seen = []
    for row in rows:
        assert row.bounds.shape == (64 + 2,)
        members = [row.input_ids[0, a:b] for a, b in pairwise(row.bounds.tolist()) if a < b]
        positions = [row.position_ids[0, a:b] for a, b in pairwise(row.bounds.tolist()) if a < b]
        *members, rest = members if row.bounds[-2] == row.input_ids.shape[1] else [*members, torch.zeros(0)]
        assert not rest.any()
        for ids, places in zip(members, positions, strict=False):
            assert len(set(ids.tolist())) == 1
            assert places.tolist() == [*range(len(ids))]
            seen.append((ids[0].item(), len(ids)))
    assert sorted(seen) == [*enumerate(lengths, 1)]


@pytest.mark.parametrize(
    ("lengths", "capacity", "ranks", "sizes"),
    [
        ([3, 3, 2, 2, 2], 6, 1, [5, 4, 3]),  # the longest first is not always the best
        ([3, 3, 2, 2, 2], 12, 1, [12]),
        ([3, 3, 2, 2, 2, 4], 16, 2, [8, 8]),
        ([9, 1, 1], 4, 1, [9, 2]),  # one is longer than a row should be
        ([5, 5, 5], 9, 1, [5, 5, 5]),  # two rows would hold 15 tokens, but not these
        ([1, 1, 1, 1], 100, 4, [1, 1, 1, 1]),
    ],
)
def test_rows_are_few_even_and_as_many_for_each_rank(lengths, capacity, ranks, sizes):
    rows = even(lengths, capacity, ranks)
    assert sorted((sum(lengths[i] for i in row) for row in rows), reverse=True) == sizes
    assert sorted(i for row in rows for i in row) == [*range(len(lengths))]


@pytest.mark.parametrize(
    ("lengths", "most", "ranks", "ends"),
    [
        ([1, 1, 1, 1], 4, 1, [4]),
        ([1, 1, 1, 1], 4, 2, [2, 4]),
        ([2, 2, 2, 9], 4, 1, [2, 3, 4]),  # one sequence is longer than `most`
        ([1, 1, 1, 6], 6, 2, [3, 4]),
        ([5, 5, 5, 5], 5, 4, [1, 2, 3, 4]),
        ([1, 1, 1, 1, 4, 4], 4, 2, [2, 4, 5, 6]),  # three are enough; each rank has two
    ],
)
def test_every_rank_has_as_many_micro_batches(lengths, most, ranks, ends):
    assert balanced(lengths, most, ranks) == ends
