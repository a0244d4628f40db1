"""C4's page rules (Raffel et al. 2020, section 2.2, and its reference code), as rules on pages.

C4 also deletes lines. Text here is immutable, so the line tests decide which lines *count*: `c4_sentences` are the
sentences in lines that C4 would keep. FineWeb uses C4 without the terminal-punctuation test, hence a second set of signals.
"""

import re
from dataclasses import dataclass

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
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
LONGEST_WORD, FEWEST_WORDS = 1000, 3  # characters; words a line
_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1}}}")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？｡]+[」』”）]*|[؟۔।]+")


@dataclass
class C4Counts:
    """What C4's line tests leave of a page: sentences in surviving lines, and lines that would drop the page."""

    sentences: int = 0
    lorem_ipsum: int = 0
    curly_bracket: int = 0


def count_sentences(line: str) -> int:
    """Sentences of one stripped line: its terminators, plus a last sentence without one."""
    if not line:
        return 0
    ends = 0
    stop = 0
    for match in _SENTENCE_END.finditer(line):
        ends, stop = ends + 1, match.end()
    return ends + (1 if line[stop:].strip() else 0)


def c4_counts(lines: list[str]) -> tuple[C4Counts, C4Counts]:
    """(with the terminal-punctuation test, without it) over the lines of a page."""
    strict, loose = C4Counts(), C4Counts()
    for line in lines:
        line = line.strip()
        if not line or _LONG_WORD.search(line) or len(line.split(None, FEWEST_WORDS - 1)) < FEWEST_WORDS:
            continue
        if "[" in line:
            line = CITATION.sub("", line)
        lower = line.lower()
        counters = (strict, loose) if line.endswith(TERMINAL) and not line.endswith("...") else (loose,)
        if "lorem ipsum" in lower:
            for counts in counters:
                counts.lorem_ipsum += 1
        if "javascript" in lower:
            continue
        if "{" in line:
            for counts in counters:
                counts.curly_bracket += 1
        if POLICY.search(lower):
            continue
        sentences = count_sentences(line)
        for counts in counters:
            counts.sentences += sentences
    return strict, loose
