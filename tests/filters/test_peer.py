"""Agreement with datatrove 0.10.1's own filters, given the same words.

Their word splitter (spaCy) is replaced by ours, so what is compared is every formula and threshold; the splitters
themselves are compared in benchmarks. Texts are random, drawn to fall on both sides of the rules.
"""

import random

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import c4_filters, fineweb_quality_filter, gopher_quality_filter, gopher_repetition_filter

from filters.c4 import C4, C4_FINEWEB
from filters.fineweb import FINEWEB
from filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from filters.reference import count_sentences
from filters.rules import decide
from filters.signals import measure
from filters.words import split_words
from kernels.characters import WORDY, table

_WORDS = "the of and to be that have with river stone quickly 1984 x y zz window # ... remarkable people {".split()


class _OurSymbols:
    def __contains__(self, character):
        return not table()[ord(character)] & WORDY


@pytest.fixture(autouse=True)
def same_words(monkeypatch):
    for module in (gopher_quality_filter, gopher_repetition_filter, fineweb_quality_filter):
        monkeypatch.setattr(module, "split_into_words", lambda text, language=None: split_words(text, "en"))
    monkeypatch.setattr(gopher_quality_filter, "PUNCTUATION_SET", _OurSymbols())
    monkeypatch.setattr(c4_filters, "split_into_sentences", lambda text, language=None: [""] * count_sentences(text, "en"))


def _texts(count):
    texts = []
    for seed in range(count):
        rng = random.Random(seed)
        vocabulary = rng.sample(_WORDS, rng.randint(4, len(_WORDS)))
        lines = []
        for _ in range(rng.randint(1, 40)):
            line = " ".join(rng.choice(vocabulary) for _ in range(rng.randint(1, rng.choice([4, 12, 40]))))
            if rng.random() < 0.1:
                line = rng.choice(["- ", "• "]) + line
            line += rng.choice([".", ".", ".", "!", "...", "…", "", ":", '"'])
            lines += [line] * (1 if rng.random() < 0.93 else 3)
            if rng.random() < 0.02:
                lines.append(rng.choice(["Please enable Javascript to see it.", "We use cookies. Read our privacy policy.", "Lorem ipsum dolor sit amet."]))
        separator = "\n\n" if rng.random() < 0.3 else "\n"
        texts.append(separator.join(lines))
    return texts


TEXTS = _texts(240)
SIGNALS = measure(TEXTS, ["en"] * len(TEXTS))

_NAMES = {  # their reason -> our rule
    "gopher_short_doc": "words", "gopher_long_doc": "words", "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length", "gopher_too_many_hashes": "hashes_per_word", "gopher_too_many_ellipsis": "ellipses_per_word",
    "gopher_too_many_bullets": "bullet_lines", "gopher_too_many_end_ellipsis": "ellipsis_lines", "gopher_below_alpha_threshold": "alphabetic_words",
    "gopher_enough_stop_words": "stop_words", "dup_para_frac": "duplicate_paragraphs", "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines", "dup_line_char_frac": "duplicate_line_characters", "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines", "char_dup_ratio": "duplicate_line_characters", "list_ratio": "newlines_per_word", "lorem_ipsum": "lorem_ipsum",
    "curly_bracket": "curly_bracket", "too_few_sentences": "sentences",
    **{f"top_{n}_gram": f"top_{n}gram" for n in (2, 3, 4)}, **{f"duplicated_{n}_n_grams": f"duplicate_{n}grams" for n in range(5, 11)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "make"),
    [
        (GOPHER_QUALITY, gopher_quality_filter.GopherQualityFilter),
        (GOPHER_REPETITION, gopher_repetition_filter.GopherRepetitionFilter),
        (FINEWEB, fineweb_quality_filter.FineWebQualityFilter),
        (C4, c4_filters.C4QualityFilter),
        (C4_FINEWEB, lambda: c4_filters.C4QualityFilter(filter_no_terminal_punct=False)),
    ],
    ids=["gopher_quality", "gopher_repetition", "fineweb", "c4", "c4_fineweb"],
)
def test_same_verdicts_and_reasons(family, make):
    theirs = make()
    keep, reasons, _ = decide(SIGNALS, ["en"] * len(TEXTS), [family])
    verdicts, named = [], 0
    for row, text in enumerate(TEXTS):
        answer = theirs.filter(Document(text=text, id=str(row)))
        passed, reason = answer if isinstance(answer, tuple) else (answer, "")
        verdicts.append(passed)
        assert keep[row] == passed, (row, reason, reasons[row])
        if not passed and "c4" not in family[0].family:  # C4 stops at the first offending line, a table at its first row
            assert reasons[row].partition(".")[2] == _NAMES[reason]
            named += 1
    assert 10 < sum(verdicts) < len(TEXTS) - 10, "the texts must fall on both sides"
