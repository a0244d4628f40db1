"""Shares of characters, lines and blank-separated words: what NeMo Curator's, DCLM's and Dolma's rules read, and what tables and formulas leave in a text.

All come from the compiled passes of `filters.characters`, plus two searches for literals (addresses, boilerplate phrases).
"""

import re

import ahocorasick_rs
import numpy as np

from filters.c4 import POLICIES
from filters.characters import lines_of, tallies_of
from filters.pages import Pages, Source, counts, shares

# Phrases of cookie banners and legal footers: C4's six and NeMo Curator's additions (stages/text/utils/constants.py; of its whole
# paragraphs the words that tell them).
BOILERPLATE = (
    *POLICIES,
    "privacy overview", "privacy & cookies policy", "privacy and cookies policy",
    "necessary cookies are absolutely essential", "cookies that may not be particularly necessary", "without changing your cookie settings",
)  # fmt: skip
LOREM_IPSUM = "lorem ipsum"
_URL = re.compile(r"https?://[A-Za-z0-9$\-_@.&+/:=?#~!*(),%]+")
_ENDS = np.array(list(map(ord, ".?!\"'")))  # NeMo Curator's, which are C4's
_PHRASES = ahocorasick_rs.AhoCorasick([*BOILERPLATE, LOREM_IPSUM])
_SYMBOLS = ("#", "...", ". . .", "…")  # DCLM's symbol_ratio_filter (baselines/mappers/filters/content_filters.py)


def _measure(pages: Pages) -> dict[str, np.ndarray]:
    tallies, lines = tallies_of(pages), lines_of(pages)
    characters = np.maximum(np.diff(pages.rows), 1)
    words = np.maximum(tallies.words, 1)
    row_of = np.repeat(np.arange(len(pages)), np.diff(lines.rows))
    filled = lines.words > 0
    per_page = np.maximum(np.bincount(row_of[filled], minlength=len(pages)), 1)

    def line_share(marked: np.ndarray) -> np.ndarray:
        return np.bincount(row_of[filled & marked], minlength=len(pages)) / per_page

    columns = {
        "non_alphanumeric": 1 - tallies.latin / characters,
        "whitespace": tallies.spaces / characters,
        "parentheses": tallies.parentheses / characters,
        "letters": tallies.letters / characters,
        "url_characters": [sum(map(len, _URL.findall(text))) if "http" in text else 0 for text in pages.texts] / characters,
        "boilerplate_paragraphs": [_boilerplate(text) for text in pages.lowered],
        "unpunctuated_lines": line_share(~np.isin(lines.last, _ENDS)),
        "table_lines": line_share(lines.cells >= 2),
        "math_lines": line_share(lines.tex >= 2),
        "plain_words": tallies.words,
        "plain_word_length": tallies.word_characters / words,
        "median_word_length": tallies.median_length,
        "longest_word": tallies.longest_word,
        "alphabetic_plain_words": tallies.alphabetic_words / words,
        "symbol_words": tallies.symbol_words / words,
        "symbols_per_word": [sum(map(text.count, _SYMBOLS)) for text in pages.texts] / words,
        "stop_word_occurrences": tallies.stop_words,
        "repetitions": tallies.repetitions,
    }
    return {name: np.where(tallies.words > 0, column, 0) for name, column in columns.items()}  # a blank text has no signals


def _boilerplate(lowered: str) -> float:
    """Share of paragraphs (between blank lines) with a boilerplate phrase; 1 for a page with "lorem ipsum", as in NeMo Curator."""
    found = _PHRASES.find_matches_as_indexes(lowered)
    if not found:
        return 0.0
    if any(index == len(BOILERPLATE) for index, _, _ in found):
        return 1.0
    return len({lowered.count("\n\n", 0, start) for _, start, _ in found}) / (lowered.count("\n\n") + 1)


SHARES = Source(
    counts("plain_words", "longest_word", "stop_word_occurrences", "repetitions")
    | shares("non_alphanumeric", "whitespace", "parentheses", "letters", "url_characters", "boilerplate_paragraphs")
    | shares("unpunctuated_lines", "table_lines", "math_lines", "plain_word_length", "median_word_length")
    | shares("alphabetic_plain_words", "symbol_words", "symbols_per_word"),
    _measure,
)
