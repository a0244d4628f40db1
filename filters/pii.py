"""Personal data in text: e-mail addresses, public IP addresses, telephone numbers, bank accounts and payment cards - found, checked, masked.

Whatever carries a check is checked: IBANs by their country's length and ISO 7064 mod 97-10 (ISO 13616), cards by their issuer's range and Luhn's sum
(ISO/IEC 7812), addresses by being public (as datatrove has it). Masking keeps the text's shape: each find becomes a fixed, reserved stand-in
(RFC 2606 and 5737 addresses, the fictional numbers of the North American plan, well-known test numbers).

Time is bounded: one pass looks for what every find must hold (an @, a run of digits, two colons, two capitals before two digits), and only its
neighbourhood, at most a few dozen characters, meets a pattern.
"""

import ipaddress
import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from filters.pages import counts, shares
from filters.rules import at_most, rules

PII = rules(
    "pii",
    ("share", "pii_characters", at_most(0.1)),  # ours: a page of which a tenth is contact data is a directory
)
PII_SPANS = rules(
    "pii_spans",
    ("count", "pii", at_most(5)),  # Dolma 1.6 (Soldaini et al. 2024; configs/dolma-v1_6/mixing/cc-head.yaml): more, and the document is dropped
)
STAND_INS = {"emails": "email@example.com", "ips": "192.0.2.1", "phones": "+1 202-555-0100", "ibans": "GB33BUKB20201555555555", "cards": "4242 4242 4242 4242"}
PII_TYPES = counts(*STAND_INS, "pii") | shares("pii_characters")

_LOCAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-")
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_RUN = re.compile(r"\d[\d ().+/\-]{5,}\d")
IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.]*\d)(?!\w)")
_IPV6_HINT = re.compile(r":[0-9A-Fa-f]{0,4}:")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{4,39}(?:(?<=:)\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})?")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # what IANA has given out; so `a::b` of a program is no address
# International (+49 30 1234567), North American ((202) 555-0100, 202.555.0100; area and exchange begin with 2-9) and European trunk forms (030 / 1234-5678).
PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .\-/]?(?:\(0?\d{1,4}\)[ .\-/]?)?\d{1,5}(?:[ .\-/]?\d{2,5}){1,4}"
    r"|(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])[2-9]\d\d[-. ]\d{4}|0\d{2,5} ?[/-] ?\d{3,5}(?:[ -]?\d{2,5}){0,2})(?![\w-]|\.\d)"
)
# Numbers printed whole or in their card's groups (4-4-4-4, American Express 4-6-5, Diners 4-6-4), one separator throughout.
CARD = re.compile(r"(?<![\w.+-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|\.\d)")
# Issuer ranges: first and last prefix, lengths (ISO/IEC 7812 registrations as the card networks publish them).
_ISSUERS = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "659", (16, 19)),
    ("3528", "3589", (16, 19)),  # JCB
    ("300", "305", (14, 16)),  # Diners Club
    ("36", "36", (14, 16)),
    ("38", "39", (14, 16)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
)
_IBAN_START = re.compile(r"[A-Z]{2}\d\d(?= ?[A-Z0-9])")
# Length by country, SWIFT IBAN registry.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


class Span(NamedTuple):
    """Code points [start, end) of the text are of this kind."""

    kind: str
    start: int
    end: int


def find_pii(text: str) -> list[Span]:
    """All finds, in order, without overlap; where two kinds overlap the one that begins first and is longer stays."""
    spans = [Span("emails", *span) for span in _emails(text)]
    spans += [Span("ips", *span) for span in _ipv6(text)]
    spans += [Span("ibans", *span) for span in _ibans(text)]
    for run in _RUN.finditer(text):
        begin, end = max(run.start() - 3, 0), run.end() + 2  # a sign, bracket or boundary before; a boundary after
        spans += [Span("ips", *match.span()) for match in IPV4.finditer(text, begin, end) if is_public(match.group())]
        spans += [Span("cards", *match.span()) for match in CARD.finditer(text, begin, end) if is_card(match.group())]
        spans += [Span("phones", *match.span()) for match in PHONE.finditer(text, begin, end) if 8 <= sum(map(str.isdigit, match.group())) <= 15]
    spans.sort(key=lambda span: (span.start, -span.end))
    kept: list[Span] = []
    for span in spans:
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def count_pii(texts: Sequence[str], finds: Sequence[Sequence[Span]]) -> dict[str, list[float]]:
    """The signals of PII_TYPES from what was found: finds per kind, finds in all, and the share of characters inside them."""
    columns: dict[str, list[float]] = {kind: [sum(span.kind == kind for span in spans) for spans in finds] for kind in STAND_INS}
    columns["pii"] = list(map(len, finds))
    columns["pii_characters"] = [sum(end - start for _, start, end in spans) / max(len(text), 1) for text, spans in zip(texts, finds, strict=True)]
    return columns


def mask_pii(text: str, kinds: Collection[str] = tuple(STAND_INS)) -> tuple[str, list[Span]]:
    """The text with stand-ins for finds of these kinds, and all finds, masked or not, where they are in it."""
    pieces, spans, position, shift = [], [], 0, 0
    for kind, start, end in find_pii(text):
        content = STAND_INS[kind] if kind in kinds else text[start:end]
        pieces += [text[position:start], content]
        spans.append(Span(kind, start + shift, start + shift + len(content)))
        position, shift = end, shift + len(content) - (end - start)
    return "".join([*pieces, text[position:]]), spans


def is_public(address: str) -> bool:
    """An address that the Internet routes: no private, reserved or documentation range."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # leading zeros: not an address
        return False
    return parsed.is_global and (parsed.version == 4 or parsed in _GLOBAL_UNICAST)


def is_card(number: str) -> bool:
    """In an issuer's range, of its length, and with Luhn's check digit."""
    digits = re.sub(r"[ -]", "", number)
    if not any(low <= digits[: len(low)] <= high and len(digits) in lengths for low, high, lengths in _ISSUERS):
        return False
    total = sum(int(digit) for digit in digits[-1::-2]) + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0 and len(set(digits)) > 1


def is_iban(account: str) -> bool:
    """A registered country's length, and 1 modulo 97 with the first four characters moved to the end and letters as 10..35."""
    account = account.replace(" ", "")
    if _IBAN_LENGTHS.get(account[:2]) != len(account) or not (account.isascii() and account.isalnum() and account.isupper()):
        return False
    return int("".join(str(int(character, 36)) for character in account[4:] + account[:4])) % 97 == 1


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


def _ipv6(text: str) -> Iterator[tuple[int, int]]:
    free = 0
    for hint in _IPV6_HINT.finditer(text):
        start = hint.start()
        while start > max(free, hint.start() - 39) and text[start - 1] in "0123456789abcdefABCDEF:":
            start -= 1
        if start < free or (start and (text[start - 1].isalnum() or text[start - 1] in "_.")):
            continue
        match = _IPV6.match(text, start)
        if match and not (match.end() < len(text) and (text[match.end()].isalnum() or text[match.end()] == "_")):
            end = match.end() - (text[match.end() - 1] == ":" and text[match.end() - 2] != ":")  # "address 2001:...:1: unreachable"
            if is_public(text[start:end]):
                yield start, end
                free = end


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        inside = match.start() and text[match.start() - 1].isalnum()
        wanted = 0 if inside else _IBAN_LENGTHS.get(match.group()[:2], 0)
        at, have = match.end(), 4
        while wanted and have < wanted and at < len(text):
            if text[at] == " " and have % 4 == 0:
                at += 1
            elif "0" <= text[at] <= "9" or "A" <= text[at] <= "Z":
                at, have = at + 1, have + 1
            else:
                break
        if wanted and have == wanted and not (at < len(text) and text[at].isalnum()) and is_iban(text[match.start() : at]):
            yield match.start(), at
