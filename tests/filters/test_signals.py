"""The compiled signals are the readable reference's, value for value; n-gram counts are a plain Counter's."""

import gzip
import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.ngrams import count_ngrams
from filters.reference import is_code, signals_of
from filters.signals import CODE, CORE, measure, measure_one
from kernels.words import Words

PIECES = list("aAbé9 '’.,-:/?#()\"{[]•%жกิ日本😀…。\ud800\0\x1c\t") + [" "] * 6 + ["\n", "\n", "\n\n", "\r\n", "\u2028", "\v", "...", "Don't ", "the ", "of ", "und "]
PIECES += ["Lorem ipsum ", "JavaScript", "terms of use", " use coo\u212aies", "[12]", "[]", "[edit]", "[citation needed]", "a b c d e f g h. ", "x" * 999, "y" * 200]
PAGES = st.lists(st.tuples(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.sampled_from(["en", "fr", "zh", "de", "eo", ""])), max_size=5)


def agree(texts, languages):
    for text, language, row in zip(texts, languages, measure(texts, languages, sources=[CORE]).to_pylist(), strict=True):
        wanted = signals_of(text, language)
        row = {name: row[name] for name in CORE.types}
        assert row.pop("language_score") == 1.0
        assert row == pytest.approx({name: wanted.get(name, 0) for name in row}, rel=1e-12, abs=0), repr(text[:200])


@settings(max_examples=250, deadline=None)
@given(PAGES)
def test_the_compiled_signals_are_the_reference(pages):
    agree([text for text, _ in pages], [language for _, language in pages])


CODE_PIECES = ["def ", "class ", "import x", "#include", "$ ls", ">>> 1", "return", "returns", "from a import b", "from a  import b", "for (", "if\t(", "for x"]
CODE_PIECES += [*";{}()_", " ", " ", "\u2003", "\n", "\n", "\r", "f(x)", "(x)", "a", "é", "３", "日", "\0"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(CODE_PIECES), max_size=25).map("".join), max_size=4))
def test_lines_of_code_are_the_reference(texts):
    for text, row in zip(texts, measure(texts, ["en"] * len(texts), sources=[CODE]).to_pylist(), strict=True):
        lines = [line for line in text.split("\n") if line.strip()]
        assert row["code_lines"] == pytest.approx(sum(map(is_code, lines)) / max(len(lines), 1), abs=1e-12), repr(text)


def test_real_pages_in_many_languages(shared_data):
    with gzip.open(shared_data / "langid/udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][::9]
    texts = ["\n\n".join(row["paras"]) for row in rows]
    with gzip.open(shared_data / "extraction/wcxb-dev.gt.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts += [json.loads(line)["main_content"][:6000] for line in lines][::12]
    agree(texts, [row["bcp47"].split("-")[0] for row in rows] + ["en"] * (len(texts) - len(rows)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 99))
def test_ngram_counts_are_a_counters(ids, seed):
    vocabulary = ["a", "bc", "def", "ghij"]
    words = [vocabulary[i] for i in ids]
    hashes = np.array([random.Random(seed + 100 * i).getrandbits(64) for i in ids], np.uint64)
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    columns = count_ngrams(Words(np.array([0, len(ids)]), ends - np.array([len(word) for word in words], np.int64), ends, hashes, np.zeros(len(ids), np.uint8)))
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ("", 0)
        assert columns[f"top_{n}gram"][0] == len(gram) * count
    for n in range(5, 11):
        seen, i, characters = set(), 0, 0
        while i + n <= len(words):
            gram = " ".join(words[i : i + n])
            characters += (len(gram) - n + 1) * (gram in seen)
            i += n if gram in seen else 1
            seen.add(gram)
        assert columns[f"duplicate_{n}grams"][0] == characters


def test_batches_do_not_change_the_signals():
    texts = ["A page. Another one.\n" * n for n in (1, 400, 30_000, 3, 40_000, 1)]  # several batches
    together = measure(texts, ["en"] * len(texts))
    assert together.to_pylist() == [measure_one(text, "en") for text in texts]
    assert measure(pa.array(texts), ["en"] * len(texts)).equals(together)
    assert len(measure([], [])) == 0


def test_missing_and_blank_texts_have_zeros():
    for row in measure([None, "", " \n\t\n"], ["en", "", None], [0.5, 0.5, 0.5]).to_pylist():
        assert row.pop("language_score") == 0.5 and not any(row.values())


def test_ten_megabytes_of_one_word_and_of_one_mark():
    word, marks = measure(["x" * 10_000_000, "( " * 3_000_000], ["en", "en"], sources=[CORE]).to_pylist()
    assert word["words"] == 1 and word["mean_word_length"] == 10_000_000 and word["c4_any_sentences"] == 0
    assert marks["words"] == 0 and marks["top_2gram"] > 0.9
