"""What a page says about itself: title, canonical address, language, licence.

Read from the same stream of tags as the text, so a page is scanned once and a hostile one in linear time. Licences count in the order of how
explicitly they are meant for the page: rel="license", <meta>, JSON-LD, and last a link to a Creative Commons deed anywhere on it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from urllib.parse import urljoin

import numpy as np

from filters.licence import identify
from kernels.html_mentions import tags_holding
from kernels.html_tokens import TEXT, UNSEEN
from pipelines.extract.layout import Layout
from pipelines.extract.vocabulary import DEED_HOST, LICENCE_KEY, LICENCE_WORDS, TAG_ID, mention_bits

_META_LICENCES = ("dcterms.license", "dc.rights", "dcterms.rights", "license", "licence", "copyright", "rights")
_ATTRIBUTE = re.compile(r"(?<![\w:.-])([\w:.-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}")
_LONGEST_TITLE = 500  # characters
_LONGEST_ATTRIBUTES = 8000  # bytes
_MOST_TAGS = 1000  # of one kind; browsers have no limit, pages have a few dozen
_HEADING_EVENTS = 100  # an <h1> not closed within so many is none


@dataclass(frozen=True)
class Metadata:
    """Every field is "" where the page says nothing. `language_hint` is the primary subtag of the declared language ("de")."""

    title: str
    canonical_url: str
    language_hint: str
    license: str


def metadata_of(page: Layout, url: str) -> Metadata:
    """All of it; `url` is where the page was captured."""
    metas: dict[str, str] = {}
    for _, attributes in _tags(page, "meta"):
        name = attributes.get("name") or attributes.get("property") or attributes.get("http-equiv")
        if name and attributes.get("content"):
            metas.setdefault(name.lower(), attributes["content"])
    links = [(f" {attributes.get('rel', '').lower()} ", attributes.get("href", "")) for _, attributes in _tags(page, "link")]
    declared = next((language for _, html in _tags(page, "html") if (language := html.get("lang") or html.get("xml:lang"))), "")
    return Metadata(_title(page, metas), _canonical(metas, links, url), _language(declared, metas), _licence(page, metas, links))


def _tags(page: Layout, name: str, having: bytes = b"") -> Iterator[tuple[int, dict[str, str]]]:
    """(event, attributes) of the opening tags of a name whose attributes hold some bytes."""
    found = np.empty(_MOST_TAGS, np.int64)
    count = tags_holding(page.data, page.events, TAG_ID[name], np.frombuffer(having, np.uint8), _LONGEST_ATTRIBUTES, found)
    for event in found[:count]:
        _, start, end = page.events[event]
        yield int(event), _attributes(page.html[start : min(end, start + _LONGEST_ATTRIBUTES)].decode("utf-8", "replace"))


def _attributes(inside: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, *values in _ATTRIBUTE.findall(inside):
        found.setdefault(name.lower(), unescape(next(filter(None, values), "")))
    return found


def _content(page: Layout, events: range) -> str:
    spans = [(start, end) for tag, start, end in page.events[events.start : events.stop] if tag in (TEXT, UNSEEN)]
    return unescape(b"".join(page.html[start:end] for start, end in spans).decode("utf-8", "replace"))


def _title(page: Layout, metas: Mapping[str, str]) -> str:
    """og:title where the page has one (no site name appended), else <title>, else the first <h1>."""
    title = metas.get("og:title", "")
    tags = page.events[:, 0]
    if not title:
        drawings = np.cumsum((tags == TAG_ID["svg"]).astype(np.int32) - (tags == -TAG_ID["svg"]))  # an icon's <title> is not the page's
        title = next((_content(page, range(event + 1, event + 2)) for event, _ in _tags(page, "title") if drawings[event] <= 0), "")
    if not title.strip() and len(headings := np.flatnonzero(tags == TAG_ID["h1"])):
        ends = np.flatnonzero(tags[headings[0] : headings[0] + _HEADING_EVENTS] == -TAG_ID["h1"])
        title = _content(page, range(int(headings[0]), int(headings[0] + ends[0]))) if len(ends) else ""
    return " ".join(title.split())[:_LONGEST_TITLE]


def _canonical(metas: Mapping[str, str], links: list[tuple[str, str]], url: str) -> str:
    link = next((href for rel, href in links if " canonical " in rel and href), "") or metas.get("og:url", "")
    if not link:
        return ""
    try:
        absolute = urljoin(url, link.strip())
    except ValueError:  # an address that is none
        return ""
    return absolute if absolute.startswith(("http://", "https://")) else ""


def _language(declared: str, metas: Mapping[str, str]) -> str:
    match = _LANGUAGE.match((declared or metas.get("content-language", "") or metas.get("og:locale", "")).strip())
    return match.group().lower() if match else ""


def _licence(page: Layout, metas: Mapping[str, str], links: list[tuple[str, str]]) -> str:
    """Identifier ("cc-by-sa-4.0"), or the URL or phrase of an explicitly given licence that has none."""
    explicit = next((href for rel, href in links if " license " in rel and href), "")
    if not explicit and page.mentions & mention_bits(LICENCE_WORDS):
        anchors = [attributes for _, attributes in _tags(page, "a", b"licen") if {"license", "licence"} & {*attributes.get("rel", "").lower().split()}]
        explicit = next((attributes["href"] for attributes in anchors if attributes.get("href")), "")
    explicit = explicit or next((metas[name] for name in _META_LICENCES if identify(metas.get(name, ""))), "")
    if not explicit and page.mentions & mention_bits(LICENCE_KEY):
        explicit = _json_ld(page)
    if explicit:
        return identify(explicit) or explicit.strip()[:200]
    deeds = _tags(page, "a", *DEED_HOST) if page.mentions & mention_bits(DEED_HOST) else ()
    return next((name for _, attributes in deeds if (name := identify(attributes.get("href", "")))), "")


def _json_ld(page: Layout) -> str:
    for event, _ in _tags(page, "script", b"ld+json"):
        try:
            pending = [json.loads(b"".join(page.html[start:end] for _, start, end in page.events[event + 1 : event + 2]))]
        except (ValueError, RecursionError):  # not JSON, or hostile: says nothing
            continue
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                licence = value.get("license")
                if isinstance(licence, str) and licence:
                    return licence
                pending.extend(value.values())
            elif isinstance(value, list):
                pending.extend(value)
    return ""
