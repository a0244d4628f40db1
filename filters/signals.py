"""What can be measured of documents' texts, as columns: a batch of texts in, one struct column out.

`filters.pages` splits a batch into words once, and the sources named here read it. The core - Gopher's, C4's and FineWeb's signals - is counted
in compiled passes over the code points of the whole batch (`filters.reference` is its definition, one text at a time). Shares are in 0..1, counts are
numbers of the thing named, characters are code points. The rules that read them cite their papers in their own files.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

import filters.thresholds as thresholds
from filters.bad_words import BAD_WORDS_TYPES
from filters.c4 import LONG_LINE
from filters.c4_lines import count_c4
from filters.code import CODE_TYPES
from filters.edits import EDIT_TYPES
from filters.fineweb import SHORT_LINE
from filters.ngrams import DUPLICATE, TOP, count_ngrams
from filters.pages import Pages, Source, counts, shares
from filters.pii import PII_TYPES
from filters.shares import SHARES
from filters.toxicity import TOXICITY_TYPES
from kernels.code_lines import count_code_lines
from kernels.lines import count_lines
from kernels.words import HAS_LETTER, HAS_WORDY, count_distinct, hash_word

BATCH_CHARACTERS = 1 << 20  # measured at once, or one longer text: what is held in memory is some 30 bytes a character

_COUNTS = ("characters", "words", "lines", "stop_words", "c4_sentences", "c4_lorem_ipsum", "c4_curly_bracket")
_COUNTS += ("c4_any_sentences", "c4_any_lorem_ipsum", "c4_any_curly_bracket", "long_lines")
_SHARES = ("mean_word_length", "hashes_per_word", "ellipses_per_word", "bullet_lines", "ellipsis_lines", "alphabetic_words")
_SHARES += ("duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters")
_SHARES += tuple(f"top_{n}gram" for n in TOP) + tuple(f"duplicate_{n}grams" for n in DUPLICATE)
_SHARES += ("line_punctuation", "short_lines", "fineweb_duplicate_line_characters", "newlines_per_word", "digits", "uppercase", "language_score")


def _core(pages: Pages) -> dict[str, np.ndarray]:
    words, tally = pages.words, count_lines(pages.codes, pages.bits, pages.rows, SHORT_LINE, LONG_LINE)
    real = words.flags & HAS_WORDY != 0
    characters = tally["characters"]
    columns = {
        "characters": characters,
        "words": _per_page(real, words.rows),
        "lines": tally["lines"],
        "stop_words": _stop_words(pages),
        "mean_word_length": _share(_per_page((words.ends - words.starts) * real, words.rows), _per_page(real, words.rows)),
        "hashes_per_word": _share(tally["hash_marks"], np.diff(words.rows)),
        "ellipses_per_word": _share(tally["ellipses"], np.diff(words.rows)),
        "bullet_lines": _share(tally["bullet_lines"], tally["lines"]),
        "ellipsis_lines": _share(tally["ellipsis_lines"], tally["lines"]),
        "alphabetic_words": _share(_per_page(words.flags & HAS_LETTER != 0, words.rows), np.diff(words.rows)),
        "duplicate_paragraphs": _share(tally["duplicate_paragraphs"], tally["paragraphs"]),
        "duplicate_paragraph_characters": _share(tally["duplicate_paragraph_characters"], characters),
        "duplicate_lines": _share(tally["duplicate_parts"], tally["parts"]),
        "duplicate_line_characters": _share(tally["duplicate_part_characters"], characters),
        "line_punctuation": _share(tally["filled_terminal"], tally["filled"]),
        "short_lines": _share(tally["filled_short"], tally["filled"]),
        "fineweb_duplicate_line_characters": _share(tally["duplicate_filled_characters"], characters - tally["newlines"]),
        "newlines_per_word": _share(tally["newlines"], np.diff(words.rows)),
        "long_lines": tally["long_parts"],
        "digits": _share(tally["decimals"], characters),
        "uppercase": _share(tally["uppercase"], characters),
    }
    columns |= {name: _share(count, characters) for name, count in count_ngrams(words).items()}
    columns |= {f"c4_{name}": count for name, count in count_c4(pages.codes, pages.bits, pages.rows, pages.modes, words).items()}
    filled = tally["visible"] > 0  # a text of nothing but white space has no signals
    return {name: np.where(filled, column, 0) for name, column in columns.items()} | {"language_score": np.asarray(pages.scores, np.float64)}


def _per_page(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums over each page's words."""
    return np.diff(np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[rows])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


def _stop_words(pages: Pages) -> np.ndarray:
    """int64 [R]: distinct stop words of its language on each page."""
    languages = sorted(set(pages.languages))
    known = [np.array(sorted(map(hash_word, thresholds.of(language).stop_words)), np.uint64) for language in languages]
    lists = np.array([languages.index(language) for language in pages.languages], np.int64)
    found = np.zeros(len(pages), np.int64)
    ends = np.cumsum([0, *map(len, known)], dtype=np.int64)
    count_distinct(pages.words.rows, pages.words.hashes, lists, ends, np.concatenate([*known, np.zeros(0, np.uint64)]), found)
    return found


def _code(pages: Pages) -> dict[str, np.ndarray]:
    return {"code_lines": _share(*count_code_lines(pages.codes, pages.bits, pages.rows))}


CORE = Source(counts(*_COUNTS) | shares(*_SHARES), _core)
CODE = Source(shares("code_lines"), _code)
SOURCES: tuple[Source, ...] = (CORE, CODE, SHARES)  # a signal's name belongs to one source; these are always measured
NAMED_TYPES = BAD_WORDS_TYPES | TOXICITY_TYPES | CODE_TYPES  # measured by the sources that a recipe names
GIVEN_TYPES = PII_TYPES | EDIT_TYPES  # counted where the text is masked and edited
SIGNAL_TYPE = pa.struct([*(field for source in SOURCES for field in source.types.items()), *NAMED_TYPES.items(), *GIVEN_TYPES.items()])


def measure(
    texts: pa.Array | pa.ChunkedArray | Sequence[str | None],
    languages: Sequence[str | None],
    scores: Sequence[float] | None = None,
    sources: Sequence[Source] = SOURCES,
    given: Mapping[str, Sequence[float | None] | np.ndarray] | None = None,
) -> pa.StructArray:
    """Signals of every text; an empty text has zeros everywhere. What no source measures and is not `given` is null, which breaks no rule.

    `languages` holds lid.176 codes ("en"); they choose stop words and what divides words. `scores` are the model's probabilities of them (1 if
    not given); they are a signal too, so that one kind of rule serves all.
    """
    values = texts.to_pylist() if isinstance(texts, pa.Array | pa.ChunkedArray) else texts
    scores = [1.0] * len(values) if scores is None else scores
    measured = [_struct(pages, sources) for pages in _batches([text or "" for text in values], [language or "" for language in languages], scores)]
    columns = {field.name: pa.concat_arrays([batch.field(field.name) for batch in measured]) for field in measured[0].type} if measured else {}
    columns |= {name: pa.array(np.asarray(column), SIGNAL_TYPE.field(name).type, safe=False) for name, column in (given or {}).items()}
    return pa.StructArray.from_arrays([columns.get(field.name, pa.nulls(len(values), field.type)) for field in SIGNAL_TYPE], fields=list(SIGNAL_TYPE))


def measure_one(text: str, language: str = "en", score: float = 1.0) -> dict[str, float]:
    """Signals of one text."""
    return measure([text], [language], [score])[0].as_py()


def _batches(texts: Sequence[str], languages: Sequence[str], scores: Sequence[float]) -> Iterator[Pages]:
    start = characters = 0
    for row, text in enumerate(texts):
        if row > start and characters + len(text) > BATCH_CHARACTERS:
            yield Pages(texts[start:row], languages[start:row], scores[start:row])
            start, characters = row, 0
        characters += len(text)
    if start < len(texts):
        yield Pages(texts[start:], languages[start:], scores[start:])


def _struct(pages: Pages, sources: Sequence[Source]) -> pa.StructArray:
    columns = {}
    for source in sources:
        measured = source.measure(pages)
        columns |= {name: pa.array(np.asarray(measured[name]), kind, safe=False) for name, kind in source.types.items()}
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))
