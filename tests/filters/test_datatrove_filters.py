"""datatrove's filters as steps: its verdicts, our reasons."""

import pytest

from filters import datatrove_filters
from filters.datatrove_filters import judge


def rows(*texts):
    return [{"id": str(i), "text": text, "url": f"http://site{i}.example/", "language": "en"} for i, text in enumerate(texts)]


def test_drops_carry_a_reason():
    step = datatrove_filters.load("RegexFilter", {"regex_exp": "forbidden"})
    assert judge(step, rows("fine", "a forbidden word", "fine too")) == [("", ""), ("datatrove.RegexFilter", ""), ("", "")]


def test_the_filters_own_word_is_the_detail():
    step = datatrove_filters.load("C4ParagraphFilter", {})
    ((reason, detail),) = judge(step, rows("one short paragraph"))
    assert reason == "datatrove.C4ParagraphFilter" and detail.startswith("< 3 paragraphs")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [("NoSuchFilter", {}, "no filter NoSuchFilter; known: C4"), ("RegexFilter", {"regx": 1}, "RegexFilter: .*regx")],
)
def test_mistakes_are_named(name, params, message):
    with pytest.raises(ValueError, match=message):
        datatrove_filters.load(name, params)
