"""What every character is, in one table: one bit a question, one load an answer.

Text kernels ask the same few questions of a code point again and again: is it space, a letter, does it end a sentence, may it be split off
a word? The answers come from Python's own Unicode database, once a process (`table()`, about 0.2 s), so that a kernel and the `str` methods
of its reference cannot disagree.

Which characters divide words follows spaCy's blank tokenizers (their published character lists), since the thresholds of the web filters were
set on words that spaCy split.
"""

import unicodedata
from functools import cache

import numpy as np

LIMIT = 0x40000  # no letters, marks or symbols are assigned from here to the variation selectors of plane 14; see `table`

SPACE = 1 << 0  # str.isspace
LETTER = 1 << 1  # a letter, or a mark written on one
LOWER = 1 << 2  # a letter (or mark) that is not upper case: scripts without case count as lower
UPPER = 1 << 3  # an upper-case letter
DIGIT = 1 << 4  # 0-9
PREFIX = 1 << 5  # split off the front of a word
SUFFIX = 1 << 6  # split off its end
QUOTE = 1 << 7
BEFORE_STOP = 1 << 8  # a full stop after it is split off
INFIX = 1 << 9  # a word of its own wherever it stands
HOST = 1 << 10  # in a label of a host name
ALPHABETIC = 1 << 11  # str.isalpha
WORDY = 1 << 12  # neither punctuation nor symbol nor control: what makes a word more than a mark
UNSPACED = 1 << 13  # of a script written without spaces
LINE_BREAK = 1 << 14  # str.splitlines breaks here
TERMINAL = 1 << 15  # ends a sentence
PUNCTUATION = 1 << 16  # category P
DECIMAL = 1 << 17  # str.isdecimal
UPPERCASE = 1 << 18  # str.isupper
DIVIDER = 1 << 19  # may divide a word in which it stands, depending on its neighbours

PUNCTUATION_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
CURRENCIES = "$£€¥฿﷼" + "".join(map(chr, range(0x20A0, 0x20C0)))
# Unicode's Sentence_Terminal, and Khmer's full stops.
TERMINALS = r"[\p{Sentence_Terminal}\u17d4\u17d9\u17da]"
UNSPACED_RANGES = (  # scripts without spaces between words (Unicode blocks)
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),  # Katakana phonetic extensions
    (0x3400, 0x4DBF),  # Han and its extensions
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@cache
def table() -> np.ndarray:
    """uint32 [LIMIT + 1]: the bits of every code point; those from LIMIT on (private use, tags, unassigned) share the last entry."""
    import regex

    characters = [chr(code) for code in range(LIMIT)] + [chr(0x10FFFF)]
    category = np.array(list(map(unicodedata.category, characters)))
    kind = category.astype("U1")
    code = np.arange(LIMIT + 1)

    def each(test) -> np.ndarray:
        return np.fromiter(map(test, characters), bool, LIMIT + 1)

    def among(string: str) -> np.ndarray:
        return np.isin(code, np.array(list(map(ord, string))))

    upper = category == "Lu"
    letter = (kind == "L") | ((kind == "M") & (code >= 0x0590))  # Latin, Greek and Cyrillic marks stand apart, as in spaCy's lists
    lower = letter & ~upper
    digit = among("0123456789")
    symbol = category == "So"
    punctuation, quote = among(PUNCTUATION_MARKS), among(QUOTES)
    bits = {
        SPACE: each(str.isspace),
        LETTER: letter,
        LOWER: lower,
        UPPER: upper,
        DIGIT: digit,
        PREFIX: punctuation | quote | symbol | among(CURRENCIES) | among("§%=—–"),
        SUFFIX: punctuation | quote | symbol | among("—–"),
        QUOTE: quote,
        BEFORE_STOP: lower | digit | punctuation | quote | among("%²-+|"),
        INFIX: symbol | among("…"),
        HOST: ((code >= 0xA1) & (code <= 0xFFFF)) | digit | letter,
        ALPHABETIC: each(str.isalpha),
        WORDY: ~np.isin(kind, ["P", "S", "C"]),
        UNSPACED: np.any([(code >= low) & (code <= high) for low, high in UNSPACED_RANGES], axis=0) & ~np.isin(kind, ["P", "S", "C", "Z"]),
        LINE_BREAK: among("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"),
        TERMINAL: among("".join(regex.findall(TERMINALS, "".join(characters)))),
        PUNCTUATION: kind == "P",
        DECIMAL: each(str.isdecimal),
        UPPERCASE: each(str.isupper),
        DIVIDER: symbol | among("….,+-*^–—~:<>=/"),
    }
    return np.bitwise_or.reduce([np.where(mask, np.uint32(bit), np.uint32(0)) for bit, mask in bits.items()])


def character_class(*bits: int) -> str:
    """What stands between the brackets of a regular expression that matches the characters with one of these bits."""
    having = np.flatnonzero(table()[:LIMIT] & np.uint32(sum(bits)))
    starts = having[np.diff(having, prepend=-2) != 1]
    ends = having[np.diff(having, append=LIMIT + 1) != 1]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))
