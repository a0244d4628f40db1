"""Sets of n-grams and what they share, against Python's sets."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.jaccard import jaccard_reference, jaccards, ngram_sets
from kernels.ngrams import Normalisation, ngrams_reference

TEXTS = st.lists(st.text(st.sampled_from("ab cé3,中 \n"), max_size=40), min_size=1, max_size=8)
RULES = st.sampled_from([Normalisation(), Normalisation("characters", False, False)])


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(1, 4), RULES)
def test_sets_and_similarities_are_pythons(texts, n, rules):
    values, bounds = ngram_sets(pa.array(texts), n, rules)
    for row, text in enumerate(texts):
        assert values[bounds[row] : bounds[row + 1]].tolist() == sorted(set(ngrams_reference(text, n, rules)))
    left = np.repeat(np.arange(len(texts)), len(texts))
    right = np.tile(np.arange(len(texts)), len(texts))
    similarities = np.empty(left.size)
    jaccards(values, bounds, left, values, bounds, right, similarities)
    assert similarities.tolist() == [jaccard_reference(texts[i], texts[j], n, rules) for i, j in zip(left, right, strict=True)]


def test_no_texts_and_sliced_columns():
    values, bounds = ngram_sets(pa.array([], pa.string()), 5)
    assert values.size == 0 and bounds.tolist() == [0]
    column = pa.array(["one two", None, "three four three four", ""])
    values, bounds = ngram_sets(column.slice(1), 2)
    assert np.diff(bounds).tolist() == [0, 2, 0]
