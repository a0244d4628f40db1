"""Every signal of the Gopher, C4 and FineWeb families, for one text in plain Python: the definition in twenty lines each.

`filters.signals` computes the same for a batch, a hundred times as fast; the tests hold the two together. Ratios follow datatrove where the papers
leave room: stop words are distinct ones, words of nothing but marks do not count as words, shares of characters are over the whole text.
"""

import re
import unicodedata
from collections import Counter

import regex

import filters.thresholds as thresholds
from filters.c4 import CITATION, FEWEST_WORDS, LONG_LINE, LONGEST_WORD, POLICY, TERMINAL
from filters.fineweb import SHORT_LINE
from filters.words import split_words
from kernels.characters import LIMIT, TERMINALS
from kernels.code_lines import BEGINNINGS

_TERMINAL = regex.compile(TERMINALS)


def signals_of(text: str, language: str = "en") -> dict[str, float]:
    """All core signals by name; empty for a text of nothing but white space, whose signals are all zero."""
    if not text.strip():
        return {}
    words = split_words(text, language)
    return {"characters": len(text)} | quality(text, words, language) | repetition(text, words) | c4(text, language) | fineweb(text, words)


def quality(text: str, words: list[str], language: str) -> dict[str, float]:
    """Gopher A.1.1."""
    real = [word for word in words if not all(map(_is_symbol, word))]
    lines = text.splitlines()
    return {
        "words": len(real),
        "lines": len(lines),
        "mean_word_length": sum(map(len, real)) / max(len(real), 1),
        "hashes_per_word": text.count("#") / len(words),
        "ellipses_per_word": (text.count("...") + text.count("…")) / len(words),
        "bullet_lines": sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / len(words),
        "stop_words": len(thresholds.of(language).stop_words.intersection(words)),
    }


def _is_symbol(character: str) -> bool:
    """Punctuation, symbol or control; so is all from plane 4 on, as in `kernels.characters`."""
    return unicodedata.category(character)[0] in "PSC" or ord(character) >= LIMIT


def repetition(text: str, words: list[str]) -> dict[str, float]:
    """Gopher table A1."""
    signals = {}
    for unit, parts in (("paragraph", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        duplicates, characters = _duplicates(parts)
        signals[f"duplicate_{unit}s"] = duplicates / len(parts)
        signals[f"duplicate_{unit}_characters"] = characters / len(text)
    for n in (2, 3, 4):
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        gram, count = grams.most_common(1)[0] if grams else ((), 0)
        signals[f"top_{n}gram"] = len(" ".join(gram)) * count / len(text)
    for n in range(5, 11):
        seen, characters, i = set(), 0, 0
        while i <= len(words) - n:
            gram = tuple(words[i : i + n])
            repeated = gram in seen
            seen.add(gram)
            characters += len("".join(gram)) * repeated
            i += n if repeated else 1
        signals[f"duplicate_{n}grams"] = characters / len(text)
    return signals


def _duplicates(parts: list[str]) -> tuple[int, int]:
    """(how many parts repeat an earlier one, their characters)."""
    repeats = [part for i, part in enumerate(parts) if part in parts[:i]]
    return len(repeats), sum(map(len, repeats))


def c4(text: str, language: str) -> dict[str, float]:
    counts = dict.fromkeys([f"c4_{kind}{name}" for kind in ("", "any_") for name in ("sentences", "lorem_ipsum", "curly_bracket")], 0)
    for line in text.splitlines():
        line = line.strip()
        chunks = line.split()
        if len(chunks) < FEWEST_WORDS or max(map(len, chunks)) > LONGEST_WORD:
            continue
        line = CITATION.sub("", line)
        lower = line.lower()
        ended = line.endswith(TERMINAL) and not line.endswith("...")
        for prefix in ("c4_", "c4_any_") if ended else ("c4_any_",):
            counts[prefix + "lorem_ipsum"] += "lorem ipsum" in lower
            if "javascript" in lower:
                continue
            counts[prefix + "curly_bracket"] += "{" in line
            if not POLICY.search(lower):
                counts[prefix + "sentences"] += count_sentences(line, language)
    return counts | {"long_lines": sum(len(line) >= LONG_LINE for line in text.split("\n"))}


def count_sentences(line: str, language: str = "") -> int:
    """After a word that is a sentence-ending mark, the next word that is no punctuation begins a sentence (spaCy's sentencizer)."""
    words = split_words(line, language)
    sentences, ended = min(len(words), 1), False
    for word in words:
        if len(word) == 1 and _TERMINAL.match(word):
            ended = True
        elif ended and not all(unicodedata.category(character)[0] == "P" for character in word):
            sentences, ended = sentences + 1, False
    return sentences


def fineweb(text: str, words: list[str]) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    newlines = text.count("\n")
    return {
        "line_punctuation": sum(_TERMINAL.match(line[-1]) is not None for line in lines) / len(lines),
        "short_lines": sum(len(line) <= SHORT_LINE for line in lines) / len(lines),
        "fineweb_duplicate_line_characters": _duplicates(lines)[1] / (len(text) - newlines),
        "newlines_per_word": newlines / len(words),
        "digits": sum(map(str.isdecimal, text)) / len(text),
        "uppercase": sum(map(str.isupper, text)) / len(text),
    }


def is_code(line: str) -> bool:
    """Does a line look like program code: by how it begins, or by how it ends?"""
    text = line.strip()
    in_name = lambda character: character.isalpha() or character.isdecimal() or character == "_"
    if line.lstrip().startswith(BEGINNINGS) or re.match(r"(?:for|if)\s*\(|from \S+ import ", line.lstrip()):
        return True
    if text.startswith("return") and not in_name(text[6:7] or " "):
        return True
    call = text.endswith(")") and any(a == "(" and in_name(before) for before, a in zip(text, text[1:-1]))
    return text.endswith((";", "{", "}")) or call
