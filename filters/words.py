"""The one tokenization pass of a document: every signal reads it, nothing splits the text a second time.

The peers' "words" are spaCy's (datatrove) or `str.split` (Dolma, DCLM). These follow spaCy where a threshold can feel it
- punctuation marks, `...` and clitics (`'s`, French `l'`) are words of their own, URLs, numbers and dotted names stay
whole - at regex speed. Scripts written without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar) count a character as a word:
a dictionary segmenter would make the signals depend on its version.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Ranges without spaces between words: Thai-Lao, Myanmar, Khmer, Kana, Han and its extensions.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_W = rf"[^\W{UNSPACED}]"  # a word character: letter, digit or underscore of a spaced script
_L = rf"[^\W\d_{UNSPACED}]"  # a letter of one
_CLITIC = r"['’](?:s|re|ve|ll|d|m)(?!\w)"
# What may stand inside a word (`foo(bar`, `3.5`, `x.y`): marks between word characters, unless they divide words -
# hyphens and `:<>=/` before a letter, operators between digits, a comma between letters, a full stop before a capital.
_JOIN = rf"""(?!(?:--?-?|[–—~]){_L}|[:<>=/]{_L}|(?<=\d)[+\-*^][\d-]|(?<={_L}),{_L}|(?<=[a-z])\.[A-Z]|{_CLITIC})
             (?:(?!\.\.|…)[^\w\s])+(?={_W})"""
_WORD = rf"{_W}+(?:{_JOIN}{_W}+)*"
_MARKS = rf"[{UNSPACED}] | \.{{2,}} | (?<!\w)[-./@\\|^~]+ | [^\w\s]"
_ABBREVIATION = r"\b(?:[A-Za-z]\.){2,} | \b(?:Mr|Mrs|Ms|Dr|Jr|Sr|St|vs|etc)\."
_URL = r"""(?:https?://|www\.)[^\s<>"]*[\w/]"""
_PLAIN = re.compile(rf"{_URL} | {_CLITIC} | {_ABBREVIATION} | (?<!\w)[-./@\\|^~]*{_WORD} | {_WORD} | {_MARKS}", re.VERBOSE)
_ELIDING = re.compile(rf"{_URL} | \b{_L}{{1,6}}['’](?={_L}) | (?<!\w)[-./@\\|^~]*{_W}+(?:(?!['’]){_JOIN}{_W}+)* | {_WORD} | {_MARKS}", re.VERBOSE)
ELIDING_LANGUAGES = frozenset({"fr", "it", "ca", "oc"})  # l'homme, dell'arte: the article is a word


@dataclass(frozen=True)
class Words:
    """The words of one document, as text and as columns.

    Legend: N words, V distinct words. `ids` [N] index into `vocabulary` in order of first appearance; `lengths`,
    `is_symbol` (every character is punctuation, a symbol or a control) and `has_letter` are per word [N].
    """

    vocabulary: tuple[str, ...]
    ids: np.ndarray
    lengths: np.ndarray
    is_symbol: np.ndarray
    has_letter: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def split_words(text: str, language: str = "") -> list[str]:
    """The words of a text; `language` is an ISO 639-1 code and matters only where clitics are written with an apostrophe."""
    return word_pattern(language).findall(text)


def word_pattern(language: str = "") -> re.Pattern[str]:
    return _ELIDING if language in ELIDING_LANGUAGES else _PLAIN


def words_of(text: str, language: str = "") -> Words:
    """Tokenize once and number the words."""
    tokens = split_words(text, language)
    numbers: dict[str, int] = {}
    ids = np.fromiter((numbers.setdefault(token, len(numbers)) for token in tokens), dtype=np.int32, count=len(tokens))
    facts = np.array([_facts(word) for word in numbers], dtype=np.int32).reshape(-1, 3)[ids]
    return Words(tuple(numbers), ids, facts[:, 0], facts[:, 1].astype(bool), facts[:, 2].astype(bool))


@lru_cache(maxsize=1 << 17)
def _facts(word: str) -> tuple[int, bool, bool]:
    if word.isalnum():
        return len(word), False, any(character.isalpha() for character in word)
    return len(word), all(unicodedata.category(character)[0] in "PSC" for character in word), any(character.isalpha() for character in word)
