"""Line rules that edit a page's text, as C4 and RefinedWeb have them: lines leave, and what left is told.

Text is otherwise immutable; a recipe that names an edit gets the text that C4 or RefinedWeb would have trained on. Every deletion is recorded as
(kind, start, end) in the text as extracted: what was taken is counted, and can be read again from the page's record.

- `refinedweb`: Penedo et al. 2023 (arXiv 2306.01116), table G.2, at the values of mlfoundations/dclm, baselines_configs/dclm_baseline_refinedweb.yaml
  ("Read more..." read literally: its pattern leaves the dots unescaped).
- `c4`, `c4_fineweb`: Raffel et al. 2020, section 2.2, in the order of its code (tensorflow_datasets c4_utils.py); FineWeb leaves out
  the test of terminal punctuation.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from filters.c4 import CITATION, FEWEST_WORDS, LONGEST_WORD, POLICY, TERMINAL
from filters.characters import Lines, lines_of
from filters.pages import Pages, counts, shares
from filters.rules import at_most, rules

REFINEDWEB = rules(
    "refinedweb",
    ("removed_words", at_most(0.05)),  # a page that loses more of its words to the line rules is dropped
)
EDIT_TYPES = shares("removed_words") | counts("removed_lines")
UPPER_SHARE, WORDS_PER_LINE = 0.5, 2
PHRASE_LINE = 10  # words of the longest line of which a phrase is cut
_COUNTED = "likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers"
_COUNTER = re.compile(rf"\W*\d[\d,.]*[kmb]?\s+(?:{_COUNTED})\W*$", re.IGNORECASE)
_PHRASES = tuple(re.compile(pattern, re.IGNORECASE) for pattern in (r"\s?items in cart", r"\s?read more\.\.\.$", r"^sign-in\s?"))
_PHRASE = re.compile("items in cart|read more|sign-in", re.IGNORECASE)


WITHIN_LINES = frozenset({"phrase", "citation", "blank"})  # edits that leave their line standing, or were no line


class Edit(NamedTuple):
    """Code points [start, end) of the text before the edit went, because of `kind`."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Edited:
    """The texts left [R], what each lost [R], and the share of its words that went [R]; words are blank-separated and begin with a letter or
    digit, as DCLM counts them."""

    texts: list[str]
    edits: list[list[Edit]]
    removed_words: np.ndarray

    def signals(self) -> dict[str, Sequence[float]]:
        """The signals of EDIT_TYPES."""
        return {"removed_words": self.removed_words, "removed_lines": [sum(found.kind not in WITHIN_LINES for found in edits) for edits in self.edits]}


def edit(texts: Sequence[str], rule: str) -> Edited:
    """Apply the line rules named `rule` (see EDITS) to a batch."""
    pages = Pages(texts, [""] * len(texts))
    lines = lines_of(pages)
    edits = [EDITS[rule](lines, row, int(pages.rows[row]), text) for row, text in enumerate(texts)]
    left = [cut(text, found) for text, found in zip(texts, edits, strict=True)]
    changed = [row for row, found in enumerate(edits) if found]
    before = np.add.reduceat(np.append(lines.alnum_words, 0), lines.rows[:-1])[: len(texts)] if texts else np.zeros(0)
    after = before.copy()
    for row in changed:
        after[row] = sum(word[0].isalnum() for word in left[row].split())
    return Edited(left, edits, (before - after) / np.maximum(before, 1))


def cut(text: str, edits: Sequence[Edit]) -> str:
    """The text without the spans; what stood around a line that went is joined by at most one blank line."""
    if not edits:
        return text
    pieces, at = [], 0
    for _, start, end in edits:
        pieces.append(text[at:start])
        at = end
    return re.sub(r"\n{3,}", "\n\n", "".join([*pieces, text[at:]])).strip()


def _refinedweb(lines: Lines, row: int, base: int, text: str) -> list[Edit]:
    mine = slice(int(lines.rows[row]), int(lines.rows[row + 1]))
    lengths = lines.ends[mine] - lines.starts[mine]
    upper, digits, words = lines.upper[mine], lines.digits[mine], lines.words[mine]
    suspects = (upper > UPPER_SHARE * lengths) | (words < WORDS_PER_LINE) | (digits > 0) & (lines.alnum_words[mine] <= 2)  # a counter: "3 likes"
    if _PHRASE.search(text):
        suspects |= words <= PHRASE_LINE
    edits: list[Edit] = []
    for line in np.flatnonzero(suspects & (lengths > 0)).tolist():
        start, end = int(lines.starts[mine][line]) - base, int(lines.ends[mine][line]) - base
        if upper[line] > UPPER_SHARE * (end - start):
            edits.append(_line("uppercase_line", text, start, end))
        elif digits[line] == end - start:
            edits.append(_line("numeric_line", text, start, end))
        elif digits[line] and _COUNTER.match(text[start:end]):
            edits.append(_line("counter_line", text, start, end))
        elif words[line] < WORDS_PER_LINE:
            edits.append(_line("short_line", text, start, end))
        elif words[line] <= PHRASE_LINE:
            edits += _phrases(text, start, end)
    return edits


def _phrases(text: str, start: int, end: int) -> list[Edit]:
    """What the three phrases, one after the other, take from a line; all of it if only blanks would stay."""
    line, found = text[start:end], []
    kept = np.ones(len(line), bool)
    for pattern in _PHRASES:
        places = np.flatnonzero(kept)
        for match in pattern.finditer("".join(line[place] for place in places)):
            kept[places[match.start() : match.end()]] = False
    if kept.all():
        return []
    if not "".join(line[place] for place in np.flatnonzero(kept)).strip():
        return [_line("phrase_line", text, start, end)]
    edges = np.flatnonzero(np.diff(np.concatenate(([1], kept, [1]))))
    for first, last in edges.reshape(-1, 2).tolist():
        found.append(Edit("phrase", start + first, start + last))
    return found


def _c4(lines: Lines, row: int, base: int, text: str, *, terminal: bool = True) -> list[Edit]:
    """Lines that C4's line rules refuse, and its citation marks; blank lines and indentation go with them, as there."""
    edits: list[Edit] = []
    for line in range(int(lines.rows[row]), int(lines.rows[row + 1])):
        start, end = int(lines.starts[line]) - base, int(lines.ends[line]) - base
        content = text[start:end]
        if kind := _refusal(content.strip(), int(lines.words[line]), terminal):
            edits.append(_line(kind, text, start, end))
            continue
        if indent := len(content) - len(content.lstrip()):
            edits.append(Edit("blank", start, start + indent))
        if "[" in content:
            edits += [Edit("citation", start + match.start(), start + match.end()) for match in CITATION.finditer(content)]
        if blank := len(content) - len(content.rstrip()):
            edits.append(Edit("blank", end - blank, end))
    return edits


def _refusal(line: str, words: int, terminal: bool) -> str:
    """Why C4 deletes a line, "" if it stays."""
    if len(line) > LONGEST_WORD and any(len(word) > LONGEST_WORD for word in line.split()):
        return "long_word"
    line = CITATION.sub("", line) if "[" in line else line
    if terminal and (not line.endswith(TERMINAL) or line.endswith("...")):
        return "unpunctuated_line" if line else "blank"
    if words < FEWEST_WORDS:
        return "short_line" if line else "blank"
    lowered = line.lower()
    if "javascript" in lowered:
        return "javascript"
    return "policy" if POLICY.search(lowered) else ""


def _line(kind: str, text: str, start: int, end: int) -> Edit:
    """A whole line with its newline."""
    return Edit(kind, start, min(end + 1, len(text)))


EDITS: dict[str, Callable[[Lines, int, int, str], list[Edit]]] = {
    "refinedweb": _refinedweb,
    "c4": _c4,
    "c4_fineweb": lambda lines, row, base, text: _c4(lines, row, base, text, terminal=False),
}
