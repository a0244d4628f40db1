"""What a page says about itself: title, canonical address, language, licence.

Licences count in the order of how explicitly they are meant for the page: rel="license", <meta>, JSON-LD, and last a link
to a Creative Commons deed anywhere on it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

from resiliparse.parse.html import HTMLTree

from filters.licence import identify

_META_LICENCES = ("dcterms.license", "dc.rights", "dcterms.rights", "license", "licence", "copyright", "rights")
_TAG = re.compile(r"[A-Za-z]{2,3}")
_LONGEST_TITLE = 500  # characters


@dataclass(frozen=True)
class Metadata:
    """Every field is "" where the page says nothing. `language_hint` is the primary subtag of the declared language ("de")."""

    title: str
    canonical_url: str
    language_hint: str
    license: str


def metadata_of(tree: HTMLTree, html: str, url: str) -> Metadata:
    """All of it, from one walk over <meta> and <link>. `html` is the source the tree was parsed from, `url` its address."""
    metas: dict[str, str] = {}
    for node in tree.document.query_selector_all("meta[content]"):
        for attribute in ("name", "property", "http-equiv"):
            if key := node.getattr(attribute):
                metas.setdefault(key.lower(), node.getattr("content") or "")
    links = [(f" {(node.getattr('rel') or '').lower()} ", node.getattr("href") or "") for node in tree.document.query_selector_all("link[rel]")]
    return Metadata(
        title=_title(tree, metas),
        canonical_url=_canonical(metas, links, url),
        language_hint=_language(tree, metas),
        license=_licence(tree, html, metas, links),
    )


def _title(tree: HTMLTree, metas: Mapping[str, str]) -> str:
    """og:title where the page has one (no site name appended), else <title>, else the first <h1>."""
    title = metas.get("og:title") or tree.title
    if not title and (heading := tree.document.query_selector("h1")) is not None:
        title = heading.text
    return " ".join((title or "").split())[:_LONGEST_TITLE]


def _canonical(metas: Mapping[str, str], links: list[tuple[str, str]], url: str) -> str:
    link = next((href for rel, href in links if " canonical " in rel and href), "") or metas.get("og:url", "")
    if not link:
        return ""
    try:
        absolute = urljoin(url, link.strip())
    except ValueError:  # an address that is none
        return ""
    return absolute if absolute.startswith(("http://", "https://")) else ""


def _language(tree: HTMLTree, metas: Mapping[str, str]) -> str:
    root = tree.document.query_selector("html")
    declared = (root.getattr("lang") or root.getattr("xml:lang") or "") if root is not None else ""
    declared = declared or metas.get("content-language", "") or metas.get("og:locale", "")
    match = _TAG.match(declared.strip())
    return match.group().lower() if match else ""


def _licence(tree: HTMLTree, html: str, metas: Mapping[str, str], links: list[tuple[str, str]]) -> str:
    """Identifier ("cc-by-sa-4.0"), or the URL or phrase of an explicitly given licence that has none."""
    explicit = next((href for rel, href in links if " license " in rel and href), "")
    if not explicit and "license" in html:
        explicit = _href(tree, 'a[rel~="license"]')
    explicit = explicit or next((metas[name] for name in _META_LICENCES if identify(metas.get(name, ""))), "")
    if not explicit and '"license"' in html:
        explicit = _json_ld(tree)
    if explicit:
        return identify(explicit) or explicit.strip()[:200]
    return identify(_href(tree, 'a[href*="creativecommons.org/"]')) if "creativecommons.org/" in html else ""


def _json_ld(tree: HTMLTree) -> str:
    for script in tree.document.query_selector_all('script[type="application/ld+json"]'):
        try:
            pending = [json.loads(script.text)]
        except ValueError:  # not JSON: says nothing
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


def _href(tree: HTMLTree, selector: str) -> str:
    node = tree.document.query_selector(selector)
    return (node.getattr("href") or "") if node is not None else ""
