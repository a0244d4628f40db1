"""What is a word, and that the compiled splitter says the same as the readable one, whatever the text."""

import gzip
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.pages import Pages
from filters.words import split_words
from kernels.characters import LIMIT, table
from kernels.words import HAS_LETTER, HAS_WORDY, IS_PUNCTUATION, IS_TERMINAL, hash_word

HOSTILE = st.lists(
    st.sampled_from([*"abzAZÉß019 '’.,-–—~+*^:/<>=?#@_()\"$€%&|½µ²жЖกิ日本ค́😀…·。\ud800\0\x1c\u2028\xa0\n", "n't", "'ll", "’s", "Mr.", "km", "http://", "www.", ".."]),
    max_size=24,
).map("".join) | st.text(st.characters(), max_size=60)  # st.characters(): surrogates too
LANGUAGES = st.sampled_from(["en", "fr", "zh", "de", ""])


def fast(texts, languages):
    pages = Pages(texts, languages)
    words = pages.words
    spans = list(zip(words.starts.tolist(), words.ends.tolist(), strict=True))
    return [
        [text[start - at : end - at] for start, end in spans[first:last]]
        for text, at, first, last in zip(texts, pages.rows.tolist(), words.rows.tolist(), words.rows[1:].tolist(), strict=False)
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's John’s (2019), well-known...", "It 's John ’s ( 2019 ) , well - known ..."),
        ("I don't; we'll, they’ve", "I do n't ; we 'll , they ’ve"),
        ("see https://a-b.org/b?c=d-e, e.g. 3.5 of 1,000 at 12:30.", "see https://a-b.org/b?c=d-e , e.g. 3.5 of 1,000 at 12:30 ."),
        ("mail jane-doe@x.org or example.com/a-b", "mail jane-doe@x.org or example.com/a-b"),
        ("Mr. Smith paid $5 for 3km in the U.S. and U.K. EU.", "Mr. Smith paid $ 5 for 3 km in the U.S. and U.K. EU ."),
        ("end.Next a/b=c 5*3 x,y +1 --flag foo--bar", "end . Next a / b = c 5 * 3 x , y +1 --flag foo -- bar"),
        ("😀smile™ a… 5° «oui»", "😀 smile ™ a … 5 ° « oui »"),
        ("''' ' (''", "' '' ' ( ''"),
    ],
)
def test_what_is_a_word(text, words):
    assert split_words(text, "en") == words.split()
    assert fast([text], ["en"]) == [words.split()]


def test_a_language_decides_on_articles_and_on_scripts_without_spaces():
    assert split_words("L'homme qu'il voit", "fr") == ["L'", "homme", "qu'", "il", "voit"]
    assert split_words("日本語です。", "ja") == ["日", "本", "語", "で", "す", "。"]
    assert split_words("日本語です。", "en") == ["日本語です", "。"], "as spaCy's English splits it"


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(HOSTILE, LANGUAGES), max_size=4))
def test_the_compiled_splitter_is_the_readable_one(pairs):
    texts, languages = [text for text, _ in pairs], [language for _, language in pairs]
    assert fast(texts, languages) == [split_words(text, language) for text, language in pairs]


@settings(max_examples=80, deadline=None)
@given(HOSTILE, LANGUAGES)
def test_no_visible_character_is_lost_or_made_up(text, language):
    assert "".join(fast([text], [language])[0]) == "".join(text.split())


@settings(max_examples=100, deadline=None)
@given(HOSTILE)
def test_columns_say_what_the_words_are(text):
    columns = Pages([text], ["en"]).words
    words = split_words(text, "en")
    assert columns.hashes.tolist() == [hash_word(word) for word in words]
    for flag, test in (
        (HAS_LETTER, lambda word: any(map(str.isalpha, word))),
        (HAS_WORDY, lambda word: any(unicodedata.category(c)[0] not in "PSC" and ord(c) < LIMIT for c in word)),
        (IS_PUNCTUATION, lambda word: all(unicodedata.category(c)[0] == "P" for c in word)),
        (IS_TERMINAL, lambda word: word in set(".?!。؟।")),
    ):
        known = [flag != IS_TERMINAL or word.isascii() for word in words]  # the property's whole list is Unicode's
        assert [bool(bit) for bit, sure in zip(columns.flags & flag, known, strict=True) if sure] == [test(word) for word, sure in zip(words, known, strict=True) if sure]


def test_the_table_is_what_str_says():
    characters = "".join(map(chr, range(0x3000))) + "日𝟘😀\ud800"
    bits = table()[[ord(character) for character in characters]]
    for bit, method in ((0, str.isspace), (11, str.isalpha), (17, str.isdecimal), (18, str.isupper)):
        assert ((bits >> bit & 1) == np.array([method(character) for character in characters])).all()


def test_real_text_in_many_languages(shared_data):
    with gzip.open(shared_data / "langid/udhr.jsonl.gz", "rt", encoding="utf-8") as lines:
        declarations = [json.loads(line) for line in lines]
    wanted = "en de fr it es pt nl pl ru uk bg el he ar fa hi bn ta th km lo my ja zh ko tr vi fi hu cs ca am ka hy".split()
    texts, languages = [], []
    for declaration in declarations:
        code = declaration["bcp47"].split("-")[0]
        if code in wanted:
            texts.append("\n".join(declaration["paras"]))
            languages.append(code)
    assert len(set(languages)) >= 25
    assert fast(texts, languages) == [split_words(text, language) for text, language in zip(texts, languages, strict=True)]


def test_extremes_are_linear_and_whole():
    million = 1_000_000
    for text, words in (("a" * 10 * million, 1), ("(" * million, million), ("." * million, 1), ("@a" * million, 1), ("a-" * million, 2 * million - 1), ("", 0)):
        assert len(Pages([text], ["en"]).words.hashes) == words
