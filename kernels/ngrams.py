"""Words and n-grams as 64-bit hashes, straight from UTF-8 bytes.

Near-duplicate detection and decontamination both ask the same two questions of a text: which normalised words does it
have, and which runs of n of them. Python strings answer at well under a megabyte a second (one object a word, one a run), so the
fast path here reads the bytes of an Arrow string column once and never builds a string.

What a word is, in one table a normalisation (`fold_table`), so that policy is data and the loop has none:
- a word is a run of letters, digits and the marks on them (Unicode categories L, N, M), lower-cased; all else separates;
- scripts that write no spaces (Han, kana, Thai, Lao, Khmer, Myanmar) give one word a character: else a Chinese page is
  three "words" long and shares no shingle with its near-copy;
- `strip_marks` drops accents, `fold_digits` reads every run of decimal digits as one 0 (both datatrove's defaults, hence FineWeb's);
- `symbols` makes each operator sign a word of its own, so that "12 + 34" and "12 - 34" differ (mathematics, code);
- `unit="characters"` takes every character as a word, white space collapsed to one space (NeMo Curator's shingles);
- `unit="letters"` takes every letter and digit as a word and nothing else (GPT-4's substring match): line breaks inside words hide nothing;
- `loose` reads what looks alike alike: fullwidth, mathematical and superscript letters are plain ones, apostrophes and invisible characters vanish.

Hashes: word = fmix64 of a multiply-xor chain over code points; n-gram = fmix64 of a polynomial over word hashes modulo 2^64, which
rolls in O(1) a word whatever n is. A text with fewer than n words has one n-gram: all of it; a text without words has none.

`words_reference` and `ngrams_reference` say the same in plain Python; the tests hold the two together.
"""

import functools
import unicodedata
from typing import Literal, NamedTuple

import numba
import numpy as np
from numba import uint64

Unit = Literal["words", "characters", "letters"]

LIMIT = 0x32400  # past the last assigned letter (CJK extension H ends at U+323AF); beyond it: separators

# Kinds of a table entry, in the bits above a code point's 21.
SEPARATOR, LETTER, MARK, SINGLE, SPACE, DROP, DIGIT = (kind << 21 for kind in range(7))

# Scripts written without spaces between words (Unicode blocks).
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),  # Katakana phonetic extensions
    (0x3400, 0x4DBF),  # CJK extension A
    (0x4E00, 0x9FFF),  # CJK unified ideographs
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0x20000, 0x323AF),  # CJK extensions B to H
)
APOSTROPHES = "'\u2018\u2019\u02bc\uff07"
SYMBOLS = "+-*/=<>^%|&~!\u2212\u00d7\u00f7\u2264\u2265\u2260"  # operators that change what a formula or a line of code means

MASK = (1 << 64) - 1
WORD_SEED = 0xCBF29CE484222325  # FNV-1a's 64-bit offset basis
WORD_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd (Knuth, TAOCP 3, 6.4)
GRAM_MULTIPLIER = 0xD1342543DE82EF95  # a full-period LCG multiplier modulo 2^64 (Steele and Vigna 2021, table 7)


class Normalisation(NamedTuple):
    """What is a unit of text, and which characters are alike."""

    unit: Unit = "words"
    strip_marks: bool = True
    fold_digits: bool = True
    symbols: bool = False
    loose: bool = False


# --------------------------------------------------------------------------------------------------------------- tables


def fold(character: str, rules: Normalisation) -> tuple[int, int]:
    """(kind, folded code point) of one character under `rules`: the definition both versions share."""
    code = ord(character)
    if code >= LIMIT:
        return SEPARATOR, 0
    if rules.loose:
        plain = unicodedata.normalize("NFKC", character)
        if len(plain) == 1:
            character, code = plain, ord(plain)
        if character in APOSTROPHES or character == "\0" or unicodedata.category(character) == "Cf":
            return DROP, 0
    category = unicodedata.category(character)
    if rules.unit == "characters" and (character.isspace() or category == "Cc"):
        return SPACE, ord(" ")
    if category[0] == "M":
        return (DROP, 0) if rules.strip_marks and category == "Mn" else (MARK, code)
    if category[0] in "LN":
        kind = SINGLE if any(low <= code <= high for low, high in UNSPACED) else LETTER
        if rules.fold_digits and category == "Nd":
            return DIGIT, ord("0")
        folded = character.lower()[:1]
        decomposed = unicodedata.normalize("NFD", folded)
        if rules.strip_marks and all(unicodedata.category(mark) == "Mn" for mark in decomposed[1:]):
            folded = decomposed[0]
        return (kind if rules.unit == "words" else SINGLE), ord(folded)
    if rules.unit == "characters" or (rules.symbols and character in SYMBOLS):
        return SINGLE, code
    return SEPARATOR, 0


@functools.lru_cache(maxsize=8)
def fold_table(rules: Normalisation) -> np.ndarray:
    """`fold` for every code point below LIMIT: uint32 [LIMIT], kind in the bits above 21. About 0.3 s, once a process."""
    table = np.zeros(LIMIT, np.uint32)
    for code in range(LIMIT):
        if 0xD800 <= code <= 0xDFFF:  # surrogates are no characters
            continue
        kind, folded = fold(chr(code), rules)
        table[code] = kind | folded
    return table


# ------------------------------------------------------------------------------------------------------------- reference


def mix(value: int) -> int:
    """MurmurHash3's 64-bit finaliser: a bijection that spreads every input bit over the word (Appleby 2011)."""
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    return value ^ value >> 33


def words_reference(text: str, rules: Normalisation = Normalisation()) -> list[str]:
    """The units of `text` as strings."""
    units: list[str] = []
    kind_open = SEPARATOR
    for character in text:
        kind, code = fold(character, rules)
        if kind == DROP or (kind == SPACE and (not units or kind_open == SPACE)):
            continue
        in_word = kind_open in (LETTER, DIGIT)
        if kind == SEPARATOR:
            kind_open = SEPARATOR
        elif kind in (SINGLE, SPACE) or (kind in (LETTER, DIGIT) and not in_word):
            units.append(chr(code))
            kind_open = kind
        elif kind == MARK:  # joins the word before it, or nothing
            if in_word or kind_open == SINGLE:
                units[-1] += chr(code)
                kind_open = LETTER if in_word else SINGLE
        elif not (kind == kind_open == DIGIT):  # a letter or the first digit inside a word
            units[-1] += chr(code)
            kind_open = kind
    return units[:-1] if kind_open == SPACE else units


def hash_word_reference(word: str) -> int:
    state = WORD_SEED
    for character in word:
        state = (state ^ ord(character)) * WORD_MULTIPLIER & MASK
    return mix(state)


def ngrams_reference(text: str, n: int, rules: Normalisation = Normalisation()) -> list[int]:
    """Hashes of the n-grams of `text` in order, repeats included."""
    words = [hash_word_reference(word) for word in words_reference(text, rules)]
    n = min(n, len(words))
    starts = range(len(words) - n + 1) if n else ()
    return [mix(functools.reduce(lambda h, w: (h * GRAM_MULTIPLIER + w) & MASK, words[i : i + n], 0)) for i in starts]


# ------------------------------------------------------------------------------------------------------------------ fast


@numba.njit(cache=True, nogil=True, inline="always")
def mix_fast(value):
    value ^= value >> uint64(33)
    value *= uint64(0xFF51AFD7ED558CCD)
    value ^= value >> uint64(33)
    value *= uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> uint64(33))


@numba.njit(cache=True, nogil=True)
def hash_words(data, begin, end, table, hashes, starts, ends):
    """Hash the words of valid UTF-8 `data[begin:end]` into `hashes` (uint64); returns how many.

    `starts`, `ends` (int64, same length, or length 0 to leave them out) receive each word's byte span in `data`.
    The arrays must hold `end - begin` entries: a word takes at least one byte.
    """
    limit = np.uint32(LIMIT)
    spans = starts.size > 0
    count = 0
    open_kind = 0  # the kinds above, shifted down; 6 (DIGIT): a word whose last character is a digit
    state = uint64(0)
    last = begin  # end of the open word
    i = begin
    while i < end:
        at = i
        lead = data[i]
        if lead < 0x80:
            code = np.uint32(lead)
            i += 1
        elif lead < 0xE0:
            code = (np.uint32(lead & 0x1F) << 6) | np.uint32(data[i + 1] & 0x3F)
            i += 2
        elif lead < 0xF0:
            code = (np.uint32(lead & 0x0F) << 12) | (np.uint32(data[i + 1] & 0x3F) << 6) | np.uint32(data[i + 2] & 0x3F)
            i += 3
        else:
            code = (
                (np.uint32(lead & 0x07) << 18)
                | (np.uint32(data[i + 1] & 0x3F) << 12)
                | (np.uint32(data[i + 2] & 0x3F) << 6)
                | np.uint32(data[i + 3] & 0x3F)
            )
            i += 4
        entry = table[code] if code < limit else np.uint32(0)
        kind = entry >> 21
        value = uint64(entry & 0x1FFFFF)
        if kind == 1 and open_kind == 1:  # the common case: one more letter
            state = (state ^ value) * uint64(WORD_MULTIPLIER)
            last = i
            continue
        if kind == 5:
            continue
        if kind == 2:
            if open_kind == 1 or open_kind == 3 or open_kind == 6:
                state = (state ^ value) * uint64(WORD_MULTIPLIER)
                last = i
                if open_kind == 6:
                    open_kind = 1
            continue
        if (kind == 1 or kind == 6) and (open_kind == 1 or open_kind == 6):
            if kind == 1 or open_kind == 1:  # further digits of a number are the one 0 already there
                state = (state ^ value) * uint64(WORD_MULTIPLIER)
            last = i
            open_kind = kind
            continue
        if kind == 4 and (open_kind == 4 or (count == 0 and open_kind == 0)):
            continue
        if open_kind != 0:
            hashes[count] = mix_fast(state)
            if spans:
                ends[count] = last
            count += 1
        open_kind = kind
        if kind != 0:
            state = (uint64(WORD_SEED) ^ value) * uint64(WORD_MULTIPLIER)
            last = i
            if spans:
                starts[count] = at
    if open_kind != 0 and open_kind != 4:
        hashes[count] = mix_fast(state)
        if spans:
            ends[count] = last
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def hash_ngrams(words, count, n, grams):
    """n-gram hashes of `words[:count]` into `grams`; returns how many (one, of all words, when there are fewer than n)."""
    if count == 0:
        return 0
    if count < n:
        n = count
    state = uint64(0)
    leaving = uint64(1)  # the weight of the word that leaves the window: K^n
    for i in range(n):
        state = state * uint64(GRAM_MULTIPLIER) + words[i]
        leaving *= uint64(GRAM_MULTIPLIER)
    grams[0] = mix_fast(state)
    for i in range(n, count):
        state = state * uint64(GRAM_MULTIPLIER) + words[i] - leaving * words[i - n]
        grams[i - n + 1] = mix_fast(state)
    return count - n + 1


def utf8_column(column) -> tuple[np.ndarray, np.ndarray]:
    """An Arrow string column as (bytes uint8 [B], offsets int64 [rows + 1]) without a copy where Arrow allows; null is ""."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(column, pa.ChunkedArray):  # combine_chunks of no chunks at all
        column = pa.array([], pa.large_string())
    column = pc.fill_null(column.cast(pa.large_string()), "")
    _, offsets, data = column.buffers()
    if offsets is None or len(column) == 0:
        return np.zeros(1, np.uint8), np.zeros(len(column) + 1, np.int64)
    offsets = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return (np.frombuffer(data, np.uint8) if data and data.size else np.zeros(1, np.uint8)), offsets


def words_of(text: str, rules: Normalisation = Normalisation()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes uint64 [W], starts int64 [W], ends int64 [W]) of one text; spans are in bytes of its UTF-8."""
    data = np.frombuffer(text.encode() or b" ", np.uint8)
    hashes, starts, ends = (np.empty(data.size, dtype) for dtype in (np.uint64, np.int64, np.int64))
    count = hash_words(data, 0, data.size, fold_table(rules), hashes, starts, ends)
    return hashes[:count], starts[:count], ends[:count]


def ngrams_of(text: str, n: int, rules: Normalisation = Normalisation()) -> np.ndarray:
    """n-gram hashes of one text in order: uint64 [max(1, W - n + 1)], or [0] without words."""
    if n < 1:
        raise ValueError(f"n-grams need n >= 1, got {n}")
    words, _, _ = words_of(text, rules)
    grams = np.empty(max(1, words.size), np.uint64)
    return grams[: hash_ngrams(words, words.size, n, grams)]


# --------------------------------------------------------------------------------------------------------------- look-up


def gram_filter(grams: np.ndarray) -> np.ndarray:
    """A bitmap uint64 [2^k / 64] over hash prefixes: nearly every n-gram that is not in `grams` (uint64, sorted) is refuted by one load."""
    bits = max(12, int(grams.size * 32 - 1).bit_length()) if grams.size else 12  # >= 32 bits a gram: about 3 % pass by chance
    slots = grams >> np.uint64(64 - bits)
    bitmap = np.zeros((1 << bits) // 64, np.uint64)
    np.bitwise_or.at(bitmap, (slots >> np.uint64(6)).astype(np.int64), np.uint64(1) << (slots & np.uint64(63)))
    return bitmap


@numba.njit(cache=True, nogil=True)
def find_grams(grams, count, wanted, bitmap, positions, entries):
    """Where the n-grams `grams[:count]` occur in the sorted array `wanted`: (position, index in wanted) pairs; returns how many."""
    shift = uint64(64)
    size = bitmap.size * 64
    while size > 1:
        size >>= 1
        shift -= uint64(1)
    found = 0
    for i in range(count):
        gram = grams[i]
        slot = gram >> shift
        if (bitmap[slot >> uint64(6)] >> (slot & uint64(63))) & uint64(1):
            at = np.searchsorted(wanted, gram)
            if at < wanted.size and wanted[at] == gram:
                positions[found] = i
                entries[found] = at
                found += 1
    return found
