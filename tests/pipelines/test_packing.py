"""Packing covers every token of every document exactly once, and best-fit keeps short documents whole."""

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.packing import DOCUMENT, LENGTH, OFFSET, SHARD, WINDOW, BestFit, Concat, pack_best_fit, write_pack

SHARDS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4)


def concat(shards, length):
    return Concat([np.cumsum(lengths).astype("<u8") for lengths in shards], length)


def best_fit(shards, length):
    packs = []
    for lengths in shards:
        buffer = io.BytesIO()
        write_pack(buffer, pack_best_fit(np.array(lengths), length))
        packs.append(np.frombuffer(buffer.getvalue(), "<i8"))
    return BestFit(packs, length)


def covered(pieces):
    return sorted((int(p[SHARD]), int(p[DOCUMENT]), int(p[OFFSET]) + k) for p in pieces for k in range(p[LENGTH]))


@settings(max_examples=80, deadline=None)
@given(shards=SHARDS, length=st.integers(2, 32), data=st.data())
def test_every_token_is_in_exactly_one_window(shards, length, data):
    every = sorted((s, d, k) for s, lengths in enumerate(shards) for d, n in enumerate(lengths) for k in range(n))
    for packed in (concat(shards, length), best_fit(shards, length)):
        windows = np.array(data.draw(st.permutations(range(packed.windows))))
        pieces = packed.pieces(windows)
        assert covered(pieces) == every
        assert packed.tokens == len(every)
        filled = np.bincount(pieces[:, WINDOW], weights=pieces[:, LENGTH], minlength=len(windows))
        assert filled.max() <= length
        assert packed.filled(windows).tolist() == filled.tolist()


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, length=st.integers(2, 64))
def test_best_fit_cuts_no_document_that_fits(shards, length):
    packed = best_fit(shards, length)
    for piece in packed.pieces(np.arange(packed.windows)):
        document = shards[piece[SHARD]][piece[DOCUMENT]]
        if document <= length:
            assert piece[LENGTH] == document


def test_best_fit_is_tight_where_a_greedy_order_is_not():
    windows = pack_best_fit(np.array([6, 3, 4, 7, 5, 5]), 10)
    assert sorted(sum(piece[2] for piece in window) for window in windows) == [10, 10, 10]


def test_concat_reads_in_order_and_crosses_shards():
    packed = concat([[3, 5], [4]], 5)
    assert packed.windows == 3
    pieces = packed.pieces(np.array([1]))
    assert pieces[:, 1:].tolist() == [[0, 1, 2, 3], [1, 0, 0, 2]]
