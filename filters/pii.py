"""Personal data in text: e-mail addresses, public IP addresses, telephone numbers - counted, found and masked.

Masking keeps the text's shape: each find becomes a fixed, reserved stand-in (example.com addresses of RFC 2606, the
documentation network of RFC 5737, the fictional number range of the North American plan).
"""

import ipaddress
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from filters.rules import at_most, rules

PII = rules(
    "pii",
    ("share", "pii_per_word", at_most(0.1)),  # ours: a page of which a tenth is contact data is a directory
)

_LOCAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-")
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)")
# International (+49 30 1234567), North American ((202) 555-0100, 202-555-0100) and European trunk forms (030 / 1234-5678).
PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d{1,5}(?:[ .\-/]?\d{2,5}){1,4}"
    r"|\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}[-.]\d{3}[-.]\d{4}|0\d{2,5} ?[/-] ?\d{3,5}(?:[ -]?\d{2,5}){0,2})(?![\w-]|\.\d)"
)
STAND_INS = {"emails": "email@example.com", "ips": "192.0.2.1", "phones": "+1 202-555-0100"}
_HINT = re.compile(r"@|\d{3}|\d\.\d")  # what every find contains; most texts of most lines do not


class Span(NamedTuple):
    """Characters [start, end) of the text are of this kind."""

    kind: str
    start: int
    end: int


def find_pii(text: str) -> list[Span]:
    """All finds, in order, without overlap."""
    if not _HINT.search(text):
        return []
    spans = [Span("emails", *span) for span in _emails(text)]
    spans += [Span("ips", *match.span()) for match in IP.finditer(text) if _is_public(match.group())]
    spans += [Span("phones", *match.span()) for match in PHONE.finditer(text) if 8 <= sum(map(str.isdigit, match.group())) <= 15]
    spans.sort(key=lambda span: (span.start, -span.end))
    kept: list[Span] = []
    for span in spans:
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def count_pii(text: str) -> dict[str, int]:
    """Finds per kind."""
    counts = dict.fromkeys(STAND_INS, 0)
    for span in find_pii(text):
        counts[span.kind] += 1
    return counts


def mask_pii(text: str, kinds: Collection[str] = tuple(STAND_INS)) -> tuple[str, list[Span]]:
    """The text with stand-ins for finds of these kinds, and where they were in the original."""
    spans = [span for span in find_pii(text) if span.kind in kinds]
    pieces, position = [], 0
    for span in spans:
        pieces += [text[position : span.start], STAND_INS[span.kind]]
        position = span.end
    return "".join([*pieces, text[position:]]), spans


def _emails(text: str) -> Iterator[tuple[int, int]]:
    """Looks around every @: trying the pattern at every letter of a page costs a hundred times as much."""
    at, free = text.find("@"), 0
    while at >= 0:
        start = at
        while start > max(free, at - 64) and text[start - 1] in _LOCAL:
            start -= 1
        if start < at and (match := EMAIL.match(text, start)):
            yield match.span()
            free = match.end()
        at = text.find("@", max(at + 1, free))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:  # leading zeros: not an address
        return False
