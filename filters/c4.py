"""C4's page rules (Raffel et al. 2020, section 2.2, and its reference code), as rules on pages.

C4 also deletes lines. Text here is immutable, so the line tests decide which lines *count*: `c4_sentences` are the
sentences in lines that C4 would keep. FineWeb uses C4 without the terminal-punctuation test, hence a second set of signals.
"""

import re

from filters.rules import at_least, at_most, rules

C4 = rules(
    "c4",
    ("lorem_ipsum", "c4_lorem_ipsum", at_most(0)),
    ("curly_bracket", "c4_curly_bracket", at_most(0)),
    ("sentences", "c4_sentences", at_least(5)),
)
C4_FINEWEB = rules(  # Penedo et al. 2024 (FineWeb), section 3.5: all of C4's rules but terminal punctuation
    "c4_fineweb",
    ("lorem_ipsum", "c4_any_lorem_ipsum", at_most(0)),
    ("curly_bracket", "c4_any_curly_bracket", at_most(0)),
    ("sentences", "c4_any_sentences", at_least(5)),
)
MC4 = rules(  # Xue et al. 2021 (mT5), section 3.1: three lines of at least 200 characters
    "mc4",
    ("long_lines", at_least(3)),
)

TERMINAL = (".", "?", "!", '"', "'")
CITATIONS = ("[edit]", "[citation needed]")  # what Wikipedia leaves in a text, beside [12] and []
CITATION = re.compile("|".join([r"\[\d*]", *map(re.escape, CITATIONS)]))
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
POLICY = re.compile("|".join(POLICIES))
LONGEST_WORD, FEWEST_WORDS = 1000, 3  # characters; words a line
LONG_LINE = 200  # characters, mC4's
