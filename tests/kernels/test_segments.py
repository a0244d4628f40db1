"""Pieces of text, their cuts and their minimizers agree with plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cuts import cut, find_cuts
from kernels.minimizers import byte_symbols, minimizers, seed_length, window_hashes
from kernels.ngrams import Normalisation, utf8_column
from kernels.segments import pieces, pieces_reference

TEXT = st.text(st.sampled_from("ab\n\n .!?\"')»”。！7é-\t漢"), max_size=60)


@pytest.mark.parametrize("border", ["line", "paragraph", "sentence"])
@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, max_size=4), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_pieces_equal_the_reference(border, texts, length, least, characters):
    rules = Normalisation("characters") if characters else Normalisation()
    keys, rows, starts, ends = pieces(pa.array(texts, pa.string()), border, length, least, rules)
    expected = [(row, *piece) for row, text in enumerate(texts) for piece in pieces_reference(text, border, length, least, rules)]
    assert list(zip(rows.tolist(), keys.tolist(), starts.tolist(), ends.tolist())) == expected


def test_what_a_piece_is():
    spans = lambda text, border: [text.encode()[start:end].decode() for _, start, end in pieces_reference(text, border, 1, 1, Normalisation())]
    assert spans("one\n\n* * *\ntwo\r\nthree", "line") == ["one\n\n* * *\n", "two\r\n", "three"]
    assert spans("a\nb\n \n\nc", "paragraph") == ["a\nb\n \n\n", "c"]
    assert spans('He said "no." Then 3.5 came! そう。はい', "sentence") == ['He said "no." ', "Then 3.5 came! ", "そう。", "はい"]
    same = [key for key, _, _ in pieces_reference("Page 1: café\npage 22 - CAFE", "line", 1, 1, Normalisation())]
    assert same[0] == same[1]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 9))
def test_minimizers_name_every_window_by_its_content(data, k):
    symbols = byte_symbols(np.frombuffer(data, np.uint8))
    hashes, firsts = minimizers(symbols, k)
    assert firsts[0] == 0 and firsts[-1] == max(0, len(data) - k + 1) and (np.diff(firsts) > 0).all()
    chosen = np.repeat(hashes, np.diff(firsts))
    seeds = window_hashes(symbols, seed_length(k))
    assert [int(seeds[i : i + k - seed_length(k) + 1].min()) for i in range(chosen.size)] == chosen.tolist()
    named = {}
    for i, name in enumerate(chosen.tolist()):
        assert named.setdefault(data[i : i + k], name) == name


def test_minimizers_are_few():
    symbols = byte_symbols(np.random.default_rng(0).integers(97, 123, 200_000).astype(np.uint8))
    hashes, _ = minimizers(symbols, 100)
    assert abs(hashes.size / symbols.size - 2 / 52) < 0.002  # the density of random minimizers


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text("aé漢b", max_size=12), min_size=1, max_size=4), st.data())
def test_cuts_equal_a_mask(texts, data):
    spans = data.draw(
        st.lists(
            st.tuples(st.integers(0, len(texts) - 1), st.floats(0, 1), st.floats(0, 1), st.integers(2, 9), st.booleans()), max_size=8
        )
    )
    size = [len(text.encode()) for text in texts]
    spans = [(row, *sorted((int(a * size[row]), int(b * size[row]))), copies, stays) for row, a, b, copies, stays in spans]
    expected = []
    for row, text in enumerate(texts):
        gone, place = "", 0
        leave, stay = ({at for r, a, b, _, s in spans if r == row and s == stays for at in range(a, b)} for stays in (False, True))
        for character in text:  # a character leaves when all of its bytes do
            width = len(character.encode())
            leaves = leave - stay >= set(range(place, place + width))
            gone += "" if leaves else character
            place += width
        expected.append(gone)
    columns = [np.array([span[i] for span in spans], kind) for i, kind in enumerate((np.int64, np.uint32, np.uint32, np.uint32, bool))]
    column = pa.array(["before", *texts])[1:]  # offsets that do not begin at zero
    text, offsets = utf8_column(column)
    cuts = find_cuts(text, offsets, *columns)
    left, bounds = cut(text, offsets, cuts)
    assert [left[a:b].tobytes().decode() for a, b in zip(bounds[:-1], bounds[1:])] == expected
    for row, start, end, copies in zip(cuts.row, cuts.start, cuts.end, cuts.copies):
        assert copies == max(c for r, a, b, c, s in spans if r == row and not s and a < end and b > start)
