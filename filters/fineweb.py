"""FineWeb's own rules (Penedo et al. 2024, section 3.6), at the values of its released code.

The duplicate-line share is 0.01 in the code that made the dataset, while the paper's text says 0.1; the code's is used.
"""

from filters.rules import at_least, at_most, rules

FINEWEB = rules(
    "fineweb",
    ("line_punctuation", at_least(0.12)),
    ("short_lines", at_most(0.67)),
    ("duplicate_line_characters", "fineweb_duplicate_line_characters", at_most(0.01)),
    ("newlines_per_word", at_most(0.3)),
)
SHORT_LINE = 30  # characters
