"""Line edits: what goes and why, against RefinedWeb's and C4's rules written out one after the other."""

import random
import re

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters

from filters.edits import cut, edit

_LINES = [
    "3 likes", "1,2K Views!", "* 44 shares *", "5 likes and a lot", "ITEMS in Cart", "12 items in cart", "Sign-in here now", "sign-in", "read more...",
    "Find out more, read more...", "Sign-in read more...", "SHOUTING LINE Here", "12345", "one", "", "  ", "Half UP and half down, a normal line.",
    "A normal line of words that ends as it should.", "Written in [1] and also in [citation needed] a line.", "Enable Javascript to see this page.",
    "We use cookies as all of them do.", "Too short.", "It trails off into nothing ...", f"One {'x' * 1001} word too long for a line.", "  Indented prose is prose.  ",
]  # fmt: skip


def _texts(count):
    rng = random.Random(11)
    texts = ["\n".join(rng.choice(_LINES) for _ in range(rng.randint(1, 14))) for _ in range(count)]
    return [re.sub(r"\n{3,}", "\n\n", text).strip() for text in texts]


def _refinedweb(text):
    """DCLM's order: each rule over all lines, then the next."""
    lines = text.split("\n")
    lines = [line for line in lines if not line or sum(map(str.isupper, line)) / len(line) <= 0.5]
    lines = [line for line in lines if not line or sum(map(str.isdigit, line)) / len(line) <= 0.999999]
    lines = [line for line in lines if not re.search(r"^\W*\d(?:,|\.|\d)*[kmb]?\s+(?:likes|shares|views)\W*$", line.lower())]
    lines = [line for line in lines if not line or len(line.split()) >= 2]
    for pattern in (r"\s?items in cart", r"\s?read more\.\.\.$", r"^sign-in\s?"):
        left = []
        for line in lines:
            shorter = re.sub(pattern, "", line, flags=re.IGNORECASE) if len(line.split()) <= 10 else line
            if not line or shorter.strip():
                left.append(shorter)
        lines = left
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def test_refinedweb_lines():
    texts = _texts(400)
    edited = edit(texts, "refinedweb")
    assert edited.texts == list(map(_refinedweb, texts))
    assert [cut(text, found) for text, found in zip(texts, edited.edits, strict=True)] == edited.texts

    def words(text):
        return sum(word[0].isalnum() for word in text.split())

    assert edited.removed_words == pytest.approx([(words(a) - words(b)) / max(words(a), 1) for a, b in zip(texts, edited.texts, strict=True)])
    assert {found.kind for edits in edited.edits for found in edits} == {
        "uppercase_line", "numeric_line", "counter_line", "short_line", "phrase_line", "phrase",
    }  # fmt: skip


@pytest.mark.parametrize(("rule", "terminal"), [("c4", True), ("c4_fineweb", False)])
def test_c4_lines_are_datatroves(rule, terminal, monkeypatch):
    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, language=None: [""])
    theirs = c4_filters.C4QualityFilter(filter_no_terminal_punct=terminal, min_num_sentences=-1)
    texts = _texts(300)
    edited = edit(texts, rule)
    for text, left in zip(texts, edited.texts, strict=True):
        document = Document(text=text, id="0")
        theirs.filter(document)
        assert left == "\n".join(line.strip() for line in document.text.split("\n")).strip()


@pytest.mark.parametrize("rule", ["refinedweb", "c4", "c4_fineweb"])
def test_what_went_is_told(rule):
    texts = [*_texts(100), "", "Nothing to take from this line of words."]
    edited = edit(texts, rule)
    for text, left, found in zip(texts, edited.texts, edited.edits, strict=True):
        assert all(first.end <= second.start for first, second in zip(found, found[1:], strict=False)), "in order, no overlap"
        gone = np.zeros(len(text), bool)
        for _, start, end in found:
            gone[start:end] = True
        stayed = "".join(np.array(list(text))[~gone]) if text else ""
        assert re.sub(r"\s", "", stayed) == re.sub(r"\s", "", left)
    assert edited.texts[-2:] == texts[-2:] and edited.removed_words[-1] == 0
