"""Shares, plain words and lines against the definitions written out with Python's own strings, on real texts and on odd ones."""

import gzip
import json
import random
import re
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.characters import STOP_WORDS, lines_of, tallies_of
from filters.code import code, comments_of
from filters.pages import Pages
from filters.shares import SHARES


def _pages(texts):
    return Pages(texts, ["en"] * len(texts), [1.0] * len(texts))


def _check(texts):
    pages = _pages(texts)
    tallies, lines = tallies_of(pages), lines_of(pages)
    for row, text in enumerate(texts):
        words, mine = text.replace("\b", " ").split(), slice(*lines.rows[row : row + 2])
        split = text.split("\n")
        assert [len(line) for line in split] == (lines.ends[mine] - lines.starts[mine]).tolist()
        assert [sum(map(str.isupper, line)) for line in split] == lines.upper[mine].tolist()
        assert [sum(map(str.isdigit, line)) for line in split] == lines.digits[mine].tolist()
        assert [len(line.split()) for line in split] == lines.words[mine].tolist()
        assert [ord(line.rstrip()[-1]) if line.strip() else 0 for line in split] == lines.last[mine].tolist()
        assert [max(line.count("|"), line.count("\t")) for line in split] == lines.cells[mine].tolist()
        assert tallies.words[row] == len(words)
        assert tallies.median_length[row] == (statistics.median(map(len, words)) if words else 0)
        assert tallies.longest_word[row] == max(map(len, words), default=0)
        assert tallies.stop_words[row] == sum(word.lower() in STOP_WORDS for word in words if word.isascii())
        assert tallies.alphabetic_words[row] == sum(any(map(str.isalpha, word)) for word in words)
        assert tallies.symbol_words[row] == sum("#" in word or "…" in word for word in words)
        assert tallies.latin[row] == len(re.findall("[a-zA-Z0-9\n?!,.]", text))
        assert tallies.parentheses[row] == len(re.findall(r"[{}⟨⟩\[\]()]", text))
        assert tallies.spaces[row] == sum(character in "\t\n\r\b " for character in text)


def test_real_texts(shared_data):
    with gzip.open(shared_data / "extraction/wcxb-dev.gt.jsonl.gz", "rt") as file:
        _check([json.loads(line)["main_content"] or "" for line in file][::8])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="aZ 1.#…|\t\n\\$½éÀ字٣ \u2028the(", max_size=60), max_size=4))
def test_odd_texts(texts):
    _check(texts)


def test_repetitions():
    rng = random.Random(5)
    for _ in range(40):
        period, copies = rng.randint(1, 13), rng.randint(3, 120)
        unit = [f"u{number}" for number in range(period)]
        text = " ".join(["before", "it", *unit * copies, "and", "after"])
        assert tallies_of(_pages([text])).repetitions[0] == copies
    assert tallies_of(_pages(["no word of this one follows itself", "twice twice", ""])).repetitions.tolist() == [0, 0, 0]


def test_shares_are_what_their_names_say():
    text = "See https://a.org/x?y=1 now.\nWe use cookies\n\n| a | b | c |\n\nWe say $\\frac{1}{2}\\pi$, ok."
    empty = dict.fromkeys(SHARES.types, 0)
    columns = SHARES.measure(_pages([text, "", "Lorem Ipsum is a text"]))
    row = {name: np.asarray(column)[0].item() for name, column in columns.items()}
    assert row["url_characters"] == len("https://a.org/x?y=1") / len(text)
    assert row["boilerplate_paragraphs"] == pytest.approx(1 / 3) and np.asarray(columns["boilerplate_paragraphs"])[2] == 1
    assert row["table_lines"] == row["math_lines"] == 0.25 and row["unpunctuated_lines"] == 0.5
    assert {name: np.asarray(column)[1].item() for name, column in columns.items()} == empty


def test_python_files(shared_data):
    assert comments_of('"""Doc."""\nx = "# none"  # two\n\n\ndef f():\n    "inner"\n') == len("Doc.") + len("# two") + len("inner")
    assert comments_of("def broken(:\n # x") == comments_of("(" * 5000) == comments_of("x = 1\0") == 0
    source = code(str(shared_data / "tokenizers/gpt-neox-dolma/tokenizer.json"))
    columns = source.measure(_pages(["x = 1  # one\n", '<?xml version="1.0"?>', ""]))
    assert columns["xml_header"] == [0, 1, 0] and columns["code_file_lines"] == [2, 1, 1] and 1 < columns["characters_per_token"][0] < 6
    with pytest.raises(ValueError, match="no tokenizer"):
        code("/nowhere.json")
