"""Words, n-grams, signatures: the fast versions are the definitions, and the definitions are the field's."""

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import minhash
from kernels.ngrams import (
    Normalisation,
    hash_word_reference,
    ngrams_of,
    ngrams_reference,
    utf8_column,
    words_of,
    words_reference,
)

RULES = [
    Normalisation(),
    Normalisation(strip_marks=False, fold_digits=False),
    Normalisation(fold_digits=False, symbols=True),
    Normalisation(unit="characters", strip_marks=False, fold_digits=False),
    Normalisation(fold_digits=False, loose=True),
    Normalisation(unit="letters", fold_digits=False, loose=True),
]
# Any characters, and those where the rules meet: digits, marks, spaces, unspaced scripts, operators, beyond the BMP.
EDGES = "ab Z09\t\n.,-+é\u0301ıİßñ中文かกำ한\U00020000\U0001f600\U000e0100\u0660"
CHARACTERS = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(EDGES))
TEXTS = st.text(CHARACTERS, max_size=60)


@pytest.mark.parametrize("rules", RULES)
@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_words_equal_the_reference(rules, text):
    hashes, starts, ends = words_of(text, rules)
    words = words_reference(text, rules)
    assert hashes.tolist() == [hash_word_reference(word) for word in words]
    data = text.encode()
    for word, start, end in zip(words, starts, ends, strict=True):
        assert words_reference(data[start:end].decode(), rules) in ([word], [])  # [] for a collapsed white space on its own
    assert all(starts[1:] >= ends[:-1])


@pytest.mark.parametrize("rules", RULES)
@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(1, 8))
def test_ngrams_equal_the_reference(rules, text, n):
    assert ngrams_of(text, n, rules).tolist() == ngrams_reference(text, n, rules)


def test_words_are_what_a_person_expects():
    assert words_reference("Don't  PANIC: Café, 3.14 and 1024!") == ["don", "t", "panic", "cafe", "0", "0", "and", "0"]
    assert words_reference("Cafe\u0301") == ["cafe"] == words_reference("CAFÉ")
    assert words_reference("東京タワー 2024年") == ["東", "京", "タ", "ワ", "ー", "0", "年"]
    assert words_reference("12 + 34 = -5", Normalisation(fold_digits=False, symbols=True)) == ["12", "+", "34", "=", "-", "5"]
    assert "".join(words_reference(" A\n\n b. ", Normalisation(unit="characters"))) == "a b."
    assert words_reference("\uff24on\u2019t \U0001d42f\u00b2 so\u00adft\u200b", Normalisation(loose=True)) == ["dont", "v0", "soft"]
    assert "".join(words_reference("A b-\nc, 1!", Normalisation(unit="letters", fold_digits=False))) == "abc1"
    assert words_reference("한국어") == ["한국어"]  # a syllable is no letter with accents


@pytest.mark.parametrize("family", ["mersenne61", "affine64"])
@pytest.mark.parametrize("bits", [32, 64])
def test_signatures_equal_the_reference(family, bits):
    draw = np.random.default_rng(2)
    texts = [" ".join(draw.choice(list("abcdefghij"), 3 * size)) for size in (0, 1, 4, 5, 6, 40, 200)] + ["", "!?"]
    options = {"n": 5, "count": 30, "seed": int(draw.integers(1000)), "family": family, "bits": bits}
    images, counts = minhash.signatures(pa.array(texts), **options)
    expected, expected_counts = minhash.signatures_reference(texts, **options)
    assert np.array_equal(images, expected) and np.array_equal(counts, expected_counts)
    keys = minhash.band_keys(images, 6, 5)
    assert keys.tolist() == [minhash.band_keys_reference(row, 6, 5) for row in images.tolist()]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.integers(0, 1000))
def test_products_modulo_the_mersenne_prime_are_exact(grams, seed):
    """Against Python's integers, on the values where carries bite."""
    edges = [0, 1, minhash.MERSENNE - 1, minhash.MERSENNE, minhash.MERSENNE + 1, 2**64 - 1, 2**32 - 1, 2**32, 2**61]
    for values in (grams, edges):
        a, b = (array.copy() for array in minhash.permutations(9, seed))
        a[:3] = minhash.MERSENNE - 1, 1, 2**32 - 1
        b[:2] = minhash.MERSENNE - 1, 0
        for one in values:  # a single value at a time: the minimum hides nothing
            signature = np.empty(9, np.uint64)
            minhash._minima_mersenne(np.array([one], np.uint64), 1, a, b, np.uint64(2**64 - 1), signature)
            assert signature.tolist() == [(x * one + y) % minhash.MERSENNE for x, y in zip(a.tolist(), b.tolist(), strict=True)]


def test_affine_signatures_are_datasketchs():
    draw = np.random.default_rng(8)
    for _ in range(5):
        text = " ".join(draw.choice(["grist", "mill", "stone", "flour", "sack", "wheel", "water"], int(draw.integers(6, 300))))
        seed = int(draw.integers(1, 10**6))
        sketch = MinHash(num_perm=112, seed=seed, scheme="affine64", hashfunc=lambda gram: gram)
        sketch.update_batch(ngrams_reference(text, 5))
        ours, _ = minhash.signatures(pa.array([text]), count=112, seed=seed, family="affine64")
        assert np.array_equal(ours[0], sketch.hashvalues)


@pytest.mark.parametrize("family", ["mersenne61", "affine64"])
def test_agreement_estimates_the_jaccard_similarity(family):
    """Over 4,096 permutations the share of equal positions is the exact Jaccard, to four standard deviations."""
    draw = np.random.default_rng(4)
    words = ["".join(draw.choice(list("abcdefghijklmnop"), 6)) for _ in range(400)]
    for shared in (50, 200, 350):
        left, right = words[:shared] + words[shared : shared + 20], words[:shared] + words[shared + 20 : shared + 50]
        texts = [" ".join(left), " ".join(right)]
        sets = [set(ngrams_reference(text, 5)) for text in texts]
        exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        images, _ = minhash.signatures(pa.array(texts), count=4096, seed=17, family=family)
        assert abs((images[0] == images[1]).mean() - exact) < 4 * np.sqrt(exact * (1 - exact) / 4096)


def test_columns_of_any_string_layout_read_alike():
    texts = ["one two", None, "", "drei vier fünf", "six"]
    plain = pa.array(texts)
    layouts = [plain.cast(pa.large_string()), pa.chunked_array([plain[:2], plain[2:]]), pa.array(["skipped", *texts])[1:], plain.dictionary_encode()]
    for column in layouts:
        data, offsets = utf8_column(column)
        assert [data[a:b].tobytes().decode() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == [text or "" for text in texts]
    images, counts = minhash.signatures(pa.chunked_array([], pa.string()))
    assert images.shape == (0, 112) and counts.shape == (0,)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="n >= 1"):
        minhash.signatures(pa.array(["x"]), n=0)
    with pytest.raises(ValueError, match="32 or 64"):
        minhash.signatures(pa.array(["x"]), bits=16)
    with pytest.raises(ValueError, match="need 40 permutations"):
        minhash.band_keys(np.zeros((1, 30), np.uint64), 8, 5)
    with pytest.raises(ValueError, match="unknown permutation family"):
        minhash.permutations(3, 1, "xor")


def test_match_probability_is_fineweb_table():
    """FineWeb's blog: 14 bands of 8 find pairs of similarity .7, .75, .8, .85 with probability 56, 77, 92, 98.8 %."""
    assert np.round(minhash.match_probability(np.array([0.7, 0.75, 0.8, 0.85]), 14, 8), 3).tolist() == [0.565, 0.772, 0.924, 0.988]
