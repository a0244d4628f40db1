"""Words found in one pass against one search a word; tags by what their attributes hold against slices of the page."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.html_mentions import mentions, needles, tags_holding
from pipelines.extract.layout import lay_out
from pipelines.extract.vocabulary import MENTIONS, NEEDLES, TAG_ID

WORDS = st.lists(st.text("ab<", min_size=2, max_size=6).map(str.encode), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(words=WORDS, page=st.text("ab<", max_size=60).map(str.encode), cut=st.integers(0, 6))
def test_mentions_are_those_of_a_search_for_each_word(words, page, cut):
    size = max(len(page) - cut, 0)  # words that end behind the page do not count
    found = mentions(np.frombuffer(page + bytes(8), np.uint8), size, *needles(words))
    assert [int(found) >> i & 1 for i in range(len(words))] == [word in page[:size] for word in words]


def test_every_word_of_the_vocabulary_is_found_alone():
    for place, word in enumerate(MENTIONS):
        page = np.frombuffer(b"<p>" + word + b"</p>" + bytes(8), np.uint8)
        assert int(mentions(page, len(page) - 8, *NEEDLES)) >> place & 1


def test_tags_are_chosen_by_their_attributes():
    page = lay_out(b'<a href=x>1</a><A REL="License" href=y>2</A><b rel=license>3</b><a title="' + b"-" * 100 + b'license">4</a>')

    def texts(word: bytes, longest: int = 1000, most: int = 10) -> list[bytes]:
        found = np.empty(most, np.int64)
        count = tags_holding(page.data, page.events, TAG_ID["a"], np.frombuffer(word, np.uint8), longest, found)
        return [page.html[page.events[event + 1, 1] : page.events[event + 1, 2]] for event in found[:count]]

    assert texts(b"license") == [b"2", b"4"] and texts(b"license", longest=50) == [b"2"] and texts(b"license", most=1) == [b"2"]
    assert texts(b"") == [b"1", b"2", b"4"]
