"""Words one would rather not train on, from lists that whoever runs the crawl names: C4's rule, and their share as a plain measure of toxicity.

C4 drops a page with any word of the "List of Dirty, Naughty, Obscene or Otherwise Bad Words" (LDNOOBW, CC BY 4.0, 28 languages; not shipped here). As in its
code (tensorflow_datasets c4_utils.py) a word counts between non-word characters, in Japanese, Thai and Chinese anywhere, and a few words that
refuse a tenth of their language are allowed. mC4 kept a fraction of the pages all the same; which ones depends on the text alone.
"""

from functools import cache

import ahocorasick_rs
import fsspec
import numpy as np
import xxhash

from filters.blocklists import read_lines
from filters.pages import Pages, Source, counts, shares
from filters.rules import at_most, rules

C4_BAD_WORDS = rules(
    "c4_bad_words",
    ("any", "bad_words_counted", at_most(0)),  # Raffel et al. 2020, section 2.2
)
UNSPACED = frozenset({"ja", "th", "zh"})
ALLOWED = frozenset({"sm", "グロ", "女の子", "性"})  # c4_utils.py, _BADWORDS_ALLOWLIST
BAD_WORDS_TYPES = counts("bad_words", "bad_words_counted") | shares("bad_words_per_word")


def bad_words(template: str, keep_fraction: float = 0.0) -> Source:
    """The source of `bad_words` (finds), `bad_words_per_word`, and `bad_words_counted`: 0 on the fraction that is kept whatever it holds.

    Args:
        template: URI of a language's list, `{language}` standing for the lid.176 code, one word or phrase a line. A language without one has no signal.
        keep_fraction: 0 in C4, 0.001 in mC4.

    Raises:
        ValueError: the folder of the lists is not there; a rule that never fires for a misspelt path would be worse than none.
    """
    if not _exists(template.rpartition("/")[0]):
        raise ValueError(f"no folder of word lists for {template}")

    def measure(pages: Pages) -> dict[str, list]:
        found = [_count(text, language, template) for text, language in zip(pages.lowered, pages.languages, strict=True)]
        words = np.diff(pages.words.rows).tolist()
        return {
            "bad_words": found,
            "bad_words_per_word": [None if count is None else count / max(total, 1) for count, total in zip(found, words, strict=True)],
            "bad_words_counted": [count and (0 if _draw(text) < keep_fraction else count) for count, text in zip(found, pages.texts, strict=True)],
        }

    return Source(BAD_WORDS_TYPES, measure)


def _count(lowered: str, language: str, template: str) -> int | None:
    automaton = _automaton(template, language)
    if automaton is None:
        return None
    found = automaton.find_matches_as_indexes(lowered, overlapping=True)
    if language in UNSPACED:
        return len(found)
    return sum(not (_wordy(lowered, start - 1) or _wordy(lowered, end)) for _, start, end in found)


def _wordy(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace")) / 2**64


@cache
def _exists(folder: str) -> bool:
    fs, path = fsspec.url_to_fs(folder or ".")
    return fs.exists(path)


@cache
def _automaton(template: str, language: str) -> ahocorasick_rs.AhoCorasick | None:
    if not language or ("{language}" in template and language == "und"):
        return None
    try:
        lines = read_lines(template.replace("{language}", language))
    except ValueError:
        return None
    words = {line.strip().lower() for line in lines} - ALLOWED - {""}
    return ahocorasick_rs.AhoCorasick(sorted(words)) if words else None
