"""Gopher's rules, from "Scaling Language Models" (Rae et al. 2021, arXiv 2112.11446).

Signals follow datatrove's reading of the paper where it leaves room: stop words are counted as distinct ones, words of
nothing but symbols do not count as words, n-gram shares are in characters.
"""

from filters.rules import at_least, at_most, between, rules

GOPHER_QUALITY = rules(  # section A.1.1, "Quality Filtering"
    "gopher_quality",
    ("words", between(50, 100_000)),
    ("mean_word_length", between(3, 10)),
    ("hashes_per_word", at_most(0.1)),
    ("ellipses_per_word", at_most(0.1)),
    ("bullet_lines", at_most(0.9)),
    ("ellipsis_lines", at_most(0.3)),
    ("alphabetic_words", at_least(0.8)),
    ("stop_words", at_least(2)),
)

GOPHER_REPETITION = rules(  # table A1, "Repetition Removal"
    "gopher_repetition",
    ("duplicate_paragraphs", at_most(0.30)),
    ("duplicate_paragraph_characters", at_most(0.20)),
    ("duplicate_lines", at_most(0.30)),
    ("duplicate_line_characters", at_most(0.20)),
    ("top_2gram", at_most(0.20)),
    ("top_3gram", at_most(0.18)),
    ("top_4gram", at_most(0.16)),
    ("duplicate_5grams", at_most(0.15)),
    ("duplicate_6grams", at_most(0.14)),
    ("duplicate_7grams", at_most(0.13)),
    ("duplicate_8grams", at_most(0.12)),
    ("duplicate_9grams", at_most(0.11)),
    ("duplicate_10grams", at_most(0.10)),
)
