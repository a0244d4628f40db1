"""What a word is: the readable definition, and the reference that `kernels.words` is held to.

The web filters' thresholds were set on the words of spaCy's blank tokenizers (datatrove), so these are split the same way: text is cut at
white space; from each chunk marks are taken off the front and the end until nothing gives; what is left is a URL, an abbreviation, a
contraction, or is cut at the marks inside it. Only spaCy's lists of slang and emoticons are left out: no threshold feels them.

A language decides two things. Where an article is written with an apostrophe (l'homme) the apostrophe ends a word. In scripts without spaces each
character is a word: a dictionary segmenter would make the signals depend on its version.
"""

import re
from functools import cache
from typing import NamedTuple

from kernels.characters import BEFORE_STOP, HOST, INFIX, LETTER, LOWER, PREFIX, QUOTE, SUFFIX, UNSPACED, UPPER, character_class
from kernels.words import ABBREVIATIONS, CHARACTERS, ELIDING, UNITS

ELIDING_LANGUAGES = frozenset({"fr", "it", "ca", "oc"})
UNSPACED_LANGUAGES = frozenset({"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo"})


def mode_of(language: str) -> int:
    """What a language (lid.176's code) changes about words: 0, or a mode of `kernels.words`."""
    return ELIDING if language in ELIDING_LANGUAGES else CHARACTERS if language in UNSPACED_LANGUAGES else 0


class _Patterns(NamedTuple):
    prefix: re.Pattern[str]
    suffix: re.Pattern[str]
    contraction: re.Pattern[str]
    url: re.Pattern[str]
    infix: re.Pattern[str]
    elision: re.Pattern[str]
    unspaced: re.Pattern[str]


@cache
def _patterns() -> _Patterns:
    letter, lower, upper = character_class(LETTER), character_class(LOWER), character_class(UPPER)
    lower_or_quote, upper_or_quote = character_class(LOWER, QUOTE), character_class(UPPER, QUOTE)
    host, units = character_class(HOST), "|".join(map(re.escape, UNITS))
    return _Patterns(
        prefix=re.compile(rf"\.\.+|[{character_class(PREFIX)}]|\+(?![0-9])"),
        suffix=re.compile(
            rf"(?:\.\.+|[{character_class(SUFFIX)}]|['’][sS]|(?<=[0-9])\+|(?<=°[FfCcKk])\.|(?<=[0-9])(?:[$£€¥฿﷼\u20a0-\u20bf]|{units})"
            rf"|(?<=[{character_class(BEFORE_STOP)}])\.|(?<=[{upper}][{upper}])\.)\Z"
        ),
        contraction=re.compile(r"([A-Za-z]+)(n['’]t|['’](?:re|ve|ll|d|m))"),
        url=re.compile(
            rf"(?:[A-Za-z0-9+.-]{{2,}}://)?(?:\S+@)?(?:[{host}](?:[{host}_-]{{0,62}}[{host}])?\.)+[{lower}]{{2,63}}(?::[0-9]{{2,5}})?(?:[/?#]\S*)?"
        ),
        infix=re.compile(
            rf"\.\.+|[{character_class(INFIX)}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower_or_quote}])\.(?=[{upper_or_quote}])|(?<=[{letter}]),(?=[{letter}])"
            rf"|(?<=[{letter}0-9])(?:-|–|—|--|---|——|~)(?=[{letter}])|(?<=[{letter}0-9])[:<>=/](?=[{letter}])"
        ),
        elision=re.compile(rf"(?<=[{letter}]['’])(?=[{letter}])"),
        unspaced=re.compile(rf"(?=[{character_class(UNSPACED)}])|(?<=[{character_class(UNSPACED)}])"),
    )


def split_words(text: str, language: str = "") -> list[str]:
    """The words of a text; `language` is lid.176's code."""
    return [word for chunk in text.split() for word in _split_chunk(chunk, mode_of(language))]


def _split_chunk(chunk: str, mode: int) -> list[str]:
    front, back = [], []
    while chunk and not _stands(chunk):
        prefix = match.group() if (match := _patterns().prefix.match(chunk)) else ""
        rest = chunk[len(prefix) :]
        if prefix and _stands(rest):
            front.append(prefix)
            chunk = rest
            break
        suffix = match.group() if (match := _patterns().suffix.search(rest)) else ""
        if not prefix and not suffix:
            break
        if suffix and _stands(chunk[: -len(suffix)]):
            back.append(suffix)
            chunk = chunk[: -len(suffix)]
            break
        front += [prefix] if prefix else []
        back += [suffix] if suffix else []
        chunk = rest[: len(rest) - len(suffix)]
    return [*front, *_split_inside(chunk, mode), *reversed(back)]


def _stands(chunk: str) -> bool:
    """Nothing is taken off an abbreviation or a contraction."""
    return chunk in ABBREVIATIONS or _patterns().contraction.fullmatch(chunk) is not None


def _split_inside(chunk: str, mode: int) -> list[str]:
    patterns = _patterns()
    if not chunk or chunk in ABBREVIATIONS:
        return [chunk] if chunk else []
    if match := patterns.contraction.fullmatch(chunk):
        return list(match.groups())
    if patterns.url.fullmatch(chunk):
        return [chunk]
    cuts = {0, len(chunk)} | {position for match in patterns.infix.finditer(chunk) for position in match.span()}
    if mode == ELIDING:
        cuts |= {match.start() for match in patterns.elision.finditer(chunk)}
    if mode == CHARACTERS:
        cuts |= {match.start() for match in patterns.unspaced.finditer(chunk)}
    ordered = sorted(cuts)
    return [chunk[start:end] for start, end in zip(ordered, ordered[1:], strict=False)]
