"""What a page says about itself: title, canonical address, language, licence.

Read from the tags by pattern, not from a tree: a tree's nodes are objects bound to the thread that made them, and a page's
<meta> and <link> need no structure. Licences count in the order of how explicitly they are meant for the page:
rel="license", <meta>, JSON-LD, and last a link to a Creative Commons deed anywhere on it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from urllib.parse import urljoin

from filters.licence import identify

_META_LICENCES = ("dcterms.license", "dc.rights", "dcterms.rights", "license", "licence", "copyright", "rights")
_TAGS = re.compile(r"<(meta|link|html)\b((?:[^<>\"']|\"[^\"]{0,4000}\"|'[^']{0,4000}')*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"([\w:.-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_HEADING = re.compile(r"<h1\b[^>]*>(.{0,4000}?)</h1\s*>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"<[^>]*>")
_JSON_LD = re.compile(r"<script\b[^>]*application/ld\+json[^>]*>(.*?)</script\s*>", re.IGNORECASE | re.DOTALL)
_ANCHOR_LICENCE = re.compile(r"<a\b[^>]*\brel\s*=\s*[\"']?[^\"'>]*\blicen[sc]e\b[^>]*>", re.IGNORECASE)
_DEED = re.compile(r"<a\b[^>]*\bhref\s*=\s*[\"']?([^\"'\s>]*creativecommons\.org/[^\"'\s>]*)", re.IGNORECASE)
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}")
_LONGEST_TITLE = 500  # characters
_LONGEST_DRAWING = 1 << 14  # characters before an icon's <title>


@dataclass(frozen=True)
class Metadata:
    """Every field is "" where the page says nothing. `language_hint` is the primary subtag of the declared language ("de")."""

    title: str
    canonical_url: str
    language_hint: str
    license: str


def metadata_of(html: str, url: str) -> Metadata:
    """All of it, from one pass over the tags; `url` is where the page was captured."""
    metas: dict[str, str] = {}
    links: list[tuple[str, str]] = []
    declared = ""
    for tag, inside in _TAGS.findall(html):
        attributes = _attributes(inside)
        if tag.lower() == "meta":
            name = attributes.get("name") or attributes.get("property") or attributes.get("http-equiv")
            if name and attributes.get("content"):
                metas.setdefault(name.lower(), attributes["content"])
        elif tag.lower() == "link":
            links.append((f" {attributes.get('rel', '').lower()} ", attributes.get("href", "")))
        else:
            declared = declared or attributes.get("lang") or attributes.get("xml:lang") or ""
    return Metadata(_title(html, metas), _canonical(metas, links, url), _language(declared, metas), _licence(html, metas, links))


def _attributes(inside: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, *values in _ATTRIBUTE.findall(inside):
        found.setdefault(name.lower(), unescape(next((value for value in values if value), "")))
    return found


def _title(html: str, metas: Mapping[str, str]) -> str:
    """og:title where the page has one (no site name appended), else <title>, else the first <h1>."""
    title = metas.get("og:title", "")
    for pattern in (_TITLE, _HEADING):
        if not title and (match := next((found for found in pattern.finditer(html) if not _in_drawing(html, found.start())), None)):
            title = unescape(_MARKUP.sub("", match.group(1)))
    return " ".join(title.split())[:_LONGEST_TITLE]


def _in_drawing(html: str, at: int) -> bool:
    """Whether an <svg> stands open: an icon's <title> is not the page's."""
    return (opened := html.rfind("<svg", max(0, at - _LONGEST_DRAWING), at)) >= 0 and html.find("</svg", opened, at) < 0


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


def _licence(html: str, metas: Mapping[str, str], links: list[tuple[str, str]]) -> str:
    """Identifier ("cc-by-sa-4.0"), or the URL or phrase of an explicitly given licence that has none."""
    explicit = next((href for rel, href in links if " license " in rel and href), "")
    if not explicit and ("icense" in html or "icence" in html) and (anchor := _ANCHOR_LICENCE.search(html)):
        explicit = _attributes(anchor.group()).get("href", "")
    explicit = explicit or next((metas[name] for name in _META_LICENCES if identify(metas.get(name, ""))), "")
    if not explicit and '"license"' in html:
        explicit = _json_ld(html)
    if explicit:
        return identify(explicit) or explicit.strip()[:200]
    deed = _DEED.search(html) if "creativecommons.org/" in html else None
    return identify(deed.group(1)) if deed else ""


def _json_ld(html: str) -> str:
    for script in _JSON_LD.findall(html):
        try:
            pending = [json.loads(script)]
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
