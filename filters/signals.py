"""What can be measured of a document's text, as columns: a batch of texts in, one struct column out.

One tokenization (`filters.words`) and one split into lines feed every signal. Shares are in 0..1, counts are numbers of
the thing named, characters are code points. The rules that read them cite their papers in their own files.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import regex

import filters.thresholds as thresholds
from filters.c4 import c4_counts
from filters.fineweb import SHORT_LINE
from filters.ngrams import duplicate_ngram_characters, top_ngram_characters
from filters.pages import Pages, Source, counts, shares
from filters.pii import count_pii
from filters.words import Words, words_of

MC4_LONG_LINE = 200  # characters, Xue et al. 2021
_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_SENTENCE_TERMINAL = regex.compile(r"[\p{Sentence_Terminal}\u17d4\u17d9\u17da]")  # Unicode's property, and Khmer's full stops
_CODE = re.compile(r"^\s*(?:def |class |import |from \S+ import |#include|public |private |return\b|for\s*\(|if\s*\(|\$ |>>> )|[;{}]\s*$|\w+\(.*\)\s*$")

_COUNTS = ("characters", "words", "lines", "stop_words", "c4_sentences", "c4_lorem_ipsum", "c4_curly_bracket")
_COUNTS += ("c4_any_sentences", "c4_any_lorem_ipsum", "c4_any_curly_bracket", "long_lines")
_SHARES = ("mean_word_length", "hashes_per_word", "ellipses_per_word", "bullet_lines", "ellipsis_lines", "alphabetic_words")
_SHARES += ("duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters")
_SHARES += tuple(f"top_{n}gram" for n in (2, 3, 4)) + tuple(f"duplicate_{n}grams" for n in range(5, 11))
_SHARES += ("line_punctuation", "short_lines", "fineweb_duplicate_line_characters", "newlines_per_word")
_SHARES += ("digits", "uppercase", "code_lines", "language_score")


def _core(pages: Pages) -> dict[str, list[float]]:
    rows = [_measure_one(text, language, score) for text, language, score in zip(pages.texts, pages.languages, pages.scores, strict=True)]
    return {name: [row[name] for row in rows] for name in (*_COUNTS, *_SHARES)}


def _pii(pages: Pages) -> dict[str, np.ndarray]:
    finds = [count_pii(text) for text in pages.texts]
    columns = {kind: np.array([find[kind] for find in finds], np.int32) for kind in ("emails", "ips", "phones")}
    return columns | {"pii_per_word": sum(columns.values()) / np.maximum(np.diff(pages.words.rows), 1)}


CORE = Source(counts(*_COUNTS) | shares(*_SHARES), _core)
PII_SIGNALS = Source(counts("emails", "ips", "phones") | shares("pii_per_word"), _pii)
SOURCES: tuple[Source, ...] = (CORE, PII_SIGNALS)  # a signal's name belongs to one source
SIGNAL_TYPE = pa.struct([field for source in SOURCES for field in source.types.items()])


def measure(
    texts: pa.Array | Sequence[str], languages: Sequence[str], scores: Sequence[float] | None = None, sources: Sequence[Source] = SOURCES
) -> pa.StructArray:
    """Signals of every text; an empty text has zeros everywhere.

    `languages` holds lid.176 codes ("en"); they choose stop words and how clitics are split. `scores` are the model's
    probabilities of them (1 if not given); they are a signal too, so that one kind of rule serves all.
    """
    values = texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else texts
    scores = [1.0] * len(values) if scores is None else scores
    pages = Pages([text or "" for text in values], [language or "" for language in languages], scores)
    columns = {name: pa.array(column, kind) for source in sources for (name, column), kind in _typed(source, pages)}
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


def _typed(source: Source, pages: Pages):
    measured = source.measure(pages)
    return [((name, measured[name]), kind) for name, kind in source.types.items()]


def measure_one(text: str, language: str = "en", score: float = 1.0) -> dict[str, float]:
    """Signals of one text."""
    return measure([text], [language], [score])[0].as_py()


def _measure_one(text: str, language: str, score: float) -> dict[str, float]:
    signals: dict[str, float] = dict.fromkeys(_COUNTS, 0) | dict.fromkeys(_SHARES, 0.0)
    signals["language_score"] = float(score)
    if not text.strip():
        return signals
    words = words_of(text, language)
    signals["characters"] = len(text)
    _quality(signals, text, words, language)
    _repetition(signals, text, words)
    _c4(signals, text)
    _fineweb(signals, text, words)
    _extras(signals, text)
    return signals


def _quality(signals: dict[str, float], text: str, words: Words, language: str) -> None:
    """Gopher A.1.1. Ratios are over all words, the word count and mean length over words that are not mere symbols."""
    real = int(len(words) - words.is_symbol.sum())
    lines = text.splitlines()
    signals["words"] = real
    signals["lines"] = len(lines)
    signals["mean_word_length"] = float(words.lengths[~words.is_symbol].mean()) if real else 0.0
    signals["hashes_per_word"] = text.count("#") / max(len(words), 1)
    signals["ellipses_per_word"] = (text.count("...") + text.count("…")) / max(len(words), 1)
    signals["bullet_lines"] = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
    signals["ellipsis_lines"] = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
    signals["alphabetic_words"] = float(words.has_letter.sum()) / max(len(words), 1)
    signals["stop_words"] = len(thresholds.of(language).stop_words.intersection(words.vocabulary))


def _repetition(signals: dict[str, float], text: str, words: Words) -> None:
    """Gopher table A1; every share of characters is over the characters of the whole text."""
    for unit, parts in (("paragraph", _PARAGRAPHS.split(text.strip())), ("line", _LINES.split(text))):
        duplicates, characters = _duplicates(parts)
        signals[f"duplicate_{unit}s"] = duplicates / len(parts)
        signals[f"duplicate_{unit}_characters"] = characters / len(text)
    for n in (2, 3, 4):
        signals[f"top_{n}gram"] = top_ngram_characters(words.ids, words.lengths, n) / len(text)
    for n in range(5, 11):
        signals[f"duplicate_{n}grams"] = duplicate_ngram_characters(words.ids, words.lengths, n) / len(text)


def _c4(signals: dict[str, float], text: str) -> None:
    strict, loose = c4_counts(text.splitlines())
    for prefix, found in (("c4", strict), ("c4_any", loose)):
        signals[f"{prefix}_sentences"] = found.sentences
        signals[f"{prefix}_lorem_ipsum"] = found.lorem_ipsum
        signals[f"{prefix}_curly_bracket"] = found.curly_bracket
    signals["long_lines"] = sum(len(line) >= MC4_LONG_LINE for line in text.split("\n"))


def _fineweb(signals: dict[str, float], text: str, words: Words) -> None:
    lines = [line for line in text.split("\n") if line.strip()]
    newlines = text.count("\n")
    signals["line_punctuation"] = sum(_is_sentence_terminal(line[-1]) for line in lines) / len(lines)
    signals["short_lines"] = sum(len(line) <= SHORT_LINE for line in lines) / len(lines)
    signals["fineweb_duplicate_line_characters"] = _duplicates(lines)[1] / (len(text) - newlines)
    signals["newlines_per_word"] = newlines / max(len(words), 1)


def _extras(signals: dict[str, float], text: str) -> None:
    lines = [line for line in text.split("\n") if line.strip()]
    signals["digits"] = sum(map(str.isdigit, text)) / len(text)
    signals["uppercase"] = sum(map(str.isupper, text)) / len(text)
    signals["code_lines"] = sum(_CODE.search(line[:400]) is not None for line in lines) / len(lines)


def _duplicates(parts: list[str]) -> tuple[int, int]:
    """(how many parts repeat an earlier one, their characters)."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        else:
            seen.add(part)
    return count, characters


@lru_cache(maxsize=1 << 14)
def _is_sentence_terminal(character: str) -> bool:
    return _SENTENCE_TERMINAL.match(character) is not None

