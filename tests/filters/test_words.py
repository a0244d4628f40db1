"""The one tokenization: what is a word, and that its columns say the same as its text."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.words import split_words, words_of


def test_marks_and_clitics_are_words_and_wholes_stay_whole():
    assert split_words("It's John’s (2019), well-known...", "en") == ["It", "'s", "John", "’s", "(", "2019", ")", ",", "well", "-", "known", "..."]
    assert split_words("see https://a.org/b?c=d, e.g. 3.5 of 1,000 at 12:30", "en") == [
        "see", "https://a.org/b?c=d", ",", "e.g.", "3.5", "of", "1,000", "at", "12:30",
    ]  # fmt: skip
    assert split_words("self.x[0].y() and foo(bar", "en") == ["self.x[0].y", "(", ")", "and", "foo(bar"]


def test_french_articles_are_words_and_english_contractions_are_not_split():
    assert split_words("L'homme qu'il voit", "fr") == ["L'", "homme", "qu'", "il", "voit"]
    assert split_words("don't", "en") == ["don't"]


def test_scripts_without_spaces_count_characters():
    assert split_words("日本語です。", "ja") == ["日", "本", "語", "で", "す", "。"]


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["en", "fr", "zh"]))
def test_no_visible_character_is_lost_or_made_up(text, language):
    assert "".join(split_words(text, language)) == "".join(text.split())


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .,-’'1é\n", max_size=120))
def test_columns_agree_with_the_words(text):
    words, columns = split_words(text), words_of(text)
    assert [columns.vocabulary[index] for index in columns.ids] == words
    assert columns.lengths.tolist() == [len(word) for word in words]
    assert columns.has_letter.tolist() == [any(character.isalpha() for character in word) for word in words]
    assert columns.ids.dtype == np.int32
