"""Packing covers every token of every document exactly once, and best-fit keeps short documents whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packing import best_fit, best_fit_reference
from pipelines.packing import DOCUMENT, LENGTH, OFFSET, SHARD, WINDOW, Concat, Indexed, pack_best_fit, unread, whole_documents, window_index

SHARDS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4)


def ends_of(shards):
    return [np.cumsum(lengths).astype("<u8") for lengths in shards]


def indexed(runs, length, packing):
    return Indexed(np.frombuffer(window_index(runs, length, packing), "<i8"), length)


def made(shards, length, packing):
    """The windows of shards, given the lengths of their documents; `listed` is concatenation through an index."""
    if packing == "concat":
        return Concat(ends_of(shards), length)
    return indexed(whole_documents(ends_of(shards)), length, "concat" if packing == "listed" else packing)


def covered(pieces):
    return sorted((int(p[SHARD]), int(p[DOCUMENT]), int(p[OFFSET]) + k) for p in pieces for k in range(p[LENGTH]))


@pytest.mark.parametrize("packing", ["concat", "best_fit", "pad", "listed"])
@settings(max_examples=40, deadline=None)
@given(shards=SHARDS, length=st.integers(2, 32), data=st.data())
def test_every_token_is_in_exactly_one_window(packing, shards, length, data):
    every = sorted((s, d, k) for s, lengths in enumerate(shards) for d, n in enumerate(lengths) for k in range(n))
    packed = made(shards, length, packing)
    windows = np.array(data.draw(st.permutations(range(packed.windows))))
    pieces = packed.pieces(windows)
    assert covered(pieces) == every
    assert packed.tokens == len(every)
    assert (np.diff(pieces[:, WINDOW]) >= 0).all()
    filled = np.bincount(pieces[:, WINDOW], weights=pieces[:, LENGTH], minlength=len(windows))
    assert filled.max() <= length
    assert packed.filled(windows).tolist() == filled.tolist()
    if packing != "concat":
        assert (np.diff(packed.filled(np.arange(packed.windows))) <= 0).all()  # fullest first
    document = pieces[data.draw(st.integers(0, len(pieces) - 1))]
    holding = {int(windows[p[WINDOW]]) for p in pieces if (p[[SHARD, DOCUMENT]] == document[[SHARD, DOCUMENT]]).all()}
    assert packed.windows_of(int(document[SHARD]), int(document[DOCUMENT])) == sorted(holding)


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, length=st.integers(2, 64))
def test_best_fit_and_pad_cut_no_document_that_fits(shards, length):
    for packing in ("best_fit", "pad"):
        packed = made(shards, length, packing)
        for piece in packed.pieces(np.arange(packed.windows)):
            document = shards[piece[SHARD]][piece[DOCUMENT]]
            if document <= length:
                assert piece[LENGTH] == document
    assert len(np.unique(packed.pieces(np.arange(packed.windows))[:, WINDOW])) == sum(-(-n // length) for lengths in shards for n in lengths)


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, length=st.integers(2, 32), other=st.integers(2, 64), packing=st.sampled_from(["concat", "best_fit", "pad"]), data=st.data())
def test_what_is_left_unread_is_packed_anew_without_loss(shards, length, other, packing, data):
    first = made(shards, length, data.draw(st.sampled_from(["concat", "best_fit"])))
    order = np.array(data.draw(st.permutations(range(first.windows))))
    read = data.draw(st.integers(0, first.windows))
    second = indexed(unread(first, order[read:]), other, packing)
    every = sorted((s, d, k) for s, lengths in enumerate(shards) for d, n in enumerate(lengths) for k in range(n))
    assert sorted(covered(first.pieces(order[:read])) + covered(second.pieces(np.arange(second.windows)))) == every


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(0, 300), max_size=60), capacity=st.integers(2, 130))
def test_the_compiled_packing_equals_its_reference(lengths, capacity):
    pieces, windows = best_fit(np.array(lengths, np.int64), capacity)
    reference = best_fit_reference(np.array(lengths, np.int64), capacity)
    assert [[tuple(piece) for piece in pieces[windows == number].tolist()] for number in range(len(reference))] == reference
    assert pack_best_fit(np.array(lengths, np.int64), capacity) == reference


def test_best_fit_is_tight_where_a_greedy_order_is_not_and_packs_across_shards():
    assert sorted(made([[6, 3, 4, 7, 5, 5]], 10, "best_fit").filled(np.arange(3)).tolist()) == [10, 10, 10]
    assert made([[6], [3, 4], [7], [5], [5]], 10, "best_fit").windows == 3


def test_concat_reads_in_order_and_crosses_shards():
    packed = made([[3, 5], [4]], 5, "concat")
    assert packed.windows == 3
    pieces = packed.pieces(np.array([1]))
    assert pieces[:, 1:].tolist() == [[0, 1, 2, 3], [1, 0, 0, 2]]
    assert made([[1], [1], [1], [2], [4]], 20, "concat").pieces(np.array([0]))[:, SHARD].tolist() == [0, 1, 2, 3, 4]
    assert OFFSET == 3
