"""Bytes to text: byte-order mark, then HTTP header, then <meta>, then detection - and a check that the answer fits.

A declared charset is believed unless the bytes contradict it. Labels mean what the WHATWG encoding standard says they do
(iso-8859-1 is windows-1252), as in browsers.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HTTP = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9._:+-]+)", re.IGNORECASE)
_META = re.compile(rb"<meta[^>]{0,400}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._:+-]+)", re.IGNORECASE)
_XML = re.compile(rb"^\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z0-9._:+-]+)", re.IGNORECASE)
_PRESCAN = 4096  # bytes; the standard says 1024, real pages put scripts first
_SAMPLE = 1 << 16


def decode(body: bytes, content_type: str | None) -> tuple[str, str]:
    """(text, charset). Undecodable bytes become U+FFFD; nothing raises."""
    for mark, charset in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(charset, "replace"), charset
    if wide := _wide(body[:_SAMPLE]):
        return body.decode(wide, "replace"), wide
    declared = [match.group(1) for match in [_HTTP.search(content_type or "")] if match]
    declared += [match.group(1).decode("ascii") for match in [_META.search(body, 0, _PRESCAN), _XML.search(body, 0, _PRESCAN)] if match]
    for label in declared:
        charset = _known(label)
        if charset.startswith("utf-16"):  # a page whose <meta> could be read as ASCII is not UTF-16
            charset = "utf-8"
        if charset and (text := _strict(body, charset)) is not None:
            return text, charset
    if b"\x1b$" in body[:_SAMPLE]:  # the escape sequence that begins two-byte text in ISO 2022, which is ASCII otherwise
        charset = "iso2022_kr" if b"\x1b$)C" in body[:_SAMPLE] else "iso2022_jp"
        return body.decode(charset, "replace"), charset
    if (text := _strict(body, "utf-8")) is not None:
        return text, "utf-8"
    # Declared and broken: a few bad bytes in a UTF-8 page are likelier than another charset.
    if any(_known(label) == "utf-8" for label in declared):
        text = body.decode("utf-8", "replace")
        if text.count("\ufffd") * 200 <= len(text):
            return text, "utf-8"
    charset = _known(detect_encoding(body[:_SAMPLE], from_html_meta=False) or "") or "windows-1252"
    if charset == "utf-8":  # which it is not: the detector's way of saying that it does not know, Korean above all
        charset = "cp949" if _is_korean(body[:_SAMPLE]) else "windows-1252" if not declared else charset
    return body.decode(charset, "replace"), charset


def _wide(sample: bytes) -> str:
    """UTF-16 or UTF-32 without a mark, by where the zero bytes stand: markup is ASCII, half or three quarters of it zeros."""
    zeros = [sample[place::4].count(0) * 4 / max(len(sample), 1) for place in range(4)]
    if sum(zeros) < 1 or len(sample) < 4:  # a quarter of all bytes
        return ""
    high, low = [share > 0.5 for share in zeros], min(zeros) < 0.1
    known = {(True, True, True, False): "utf-32-be", (False, True, True, True): "utf-32-le", (True, False, True, False): "utf-16-be"}
    return (known | {(False, True, False, True): "utf-16-le"}).get(tuple(high), "") if low else ""


def _is_korean(sample: bytes) -> bool:
    """Whether most of what is not ASCII are Hangul syllables once read as windows-949."""
    foreign = [character for character in sample.decode("cp949", "replace") if character > "\x7f"]
    return sum("가" <= character <= "힣" for character in foreign) * 2 > len(foreign)


def _known(label: str) -> str:
    """Python's name of a label's charset by the WHATWG table, or "" if there is none."""
    name = map_encoding_to_html5(label, fallback_utf8=False) or ""
    try:
        return codecs.lookup(name).name if name else ""
    except LookupError:
        return ""


def _strict(body: bytes, charset: str) -> str | None:
    try:
        return body.decode(charset)
    except UnicodeDecodeError as error:
        # A capture cut inside the last character is not a contradiction.
        if error.start >= len(body) - 4 and charset == "utf-8":
            return body.decode(charset, "ignore")
        return None
