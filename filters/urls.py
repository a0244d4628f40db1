"""What a URL says before its page is read: host, registered domain, block lists, words, EasyList-like rules.

Lists belong to whoever runs the crawl; none ships with the project (`filters.blocklists` says what can be named). The order and the meaning of the
lists are datatrove's (pipeline/filters/url_filter.py; FineWeb) and RefinedWeb's (Penedo et al. 2023, section G.1): domains, addresses, one hard word,
two soft words, one subword of the address without its punctuation. A domain covers its subdomains, never a public suffix.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

import ahocorasick_rs

from filters.blocklists import HashSet, entries, hash_set, read_lines
from filters.easylist import EasyList, load_easylist

SOFT_LIMIT = 2  # distinct soft words that refuse a page: RefinedWeb, FineWeb
_MARKS = re.compile(r"[^a-z0-9]+")


def host_of(url: str) -> str:
    """Lower-case host without port, user or trailing dot; "" if the URL has none."""
    try:
        return (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:  # e.g. an unclosed bracket of an IPv6 address
        return ""


@cache
def _suffixes(uri: str):
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList(read_lines(uri), only_icann=True) if uri else PublicSuffixList(only_icann=True)


def registered_domain(host: str, suffixes: str = "") -> str:
    """What somebody registered of a host ("example.co.uk"), by the public suffix list's ICANN part; "" for a suffix or an address.

    `suffixes` is a URI of another list than the one in the `publicsuffixlist` package.
    """
    if not host or host.replace(".", "").isdigit() or ":" in host:
        return ""
    return _suffixes(suffixes).privatesuffix(host) or ""


@dataclass(frozen=True)
class UrlRules:
    """`domains` block hosts and their subdomains; `addresses` (host and path) block a page and what lies below it; one `hard` word blocks,
    `soft_limit` distinct `soft` words do, one of `subwords` inside the address without its punctuation does; so do `easylist`'s rules."""

    domains: frozenset[str] | HashSet = frozenset()
    addresses: frozenset[str] | HashSet = frozenset()
    hard: frozenset[str] = frozenset()
    soft: frozenset[str] = frozenset()
    soft_limit: int = SOFT_LIMIT
    subwords: ahocorasick_rs.AhoCorasick | None = None
    easylist: EasyList | None = None

    @classmethod
    def of(cls, domains: Iterable[str] = (), hard: Iterable[str] = (), soft: Iterable[str] = (), soft_limit: int = SOFT_LIMIT) -> "UrlRules":
        """From entries."""
        return cls(frozenset(_clean(domains)), frozenset(), frozenset(map(squeeze, hard)), frozenset(map(squeeze, soft)), soft_limit)

    @classmethod
    def load(
        cls,
        domains: tuple[str, ...] = (),
        addresses: tuple[str, ...] = (),
        hard: tuple[str, ...] = (),
        soft: tuple[str, ...] = (),
        subwords: tuple[str, ...] = (),
        easylists: tuple[str, ...] = (),
        soft_limit: int = SOFT_LIMIT,
    ) -> "UrlRules":
        """From lists at URIs; big lists are kept once a process. Raises ValueError when one cannot be read."""
        words = [tuple(filter(None, map(squeeze, entries(*uris)))) for uris in (hard, soft, subwords)]
        automaton = ahocorasick_rs.AhoCorasick(words[2]) if words[2] else None
        rules = load_easylist(easylists) if easylists else None
        return cls(hash_set(domains), hash_set(addresses), frozenset(words[0]), frozenset(words[1]), soft_limit, automaton, rules)

    def judge(self, url: str) -> tuple[str, str]:
        """(reason, detail), both "" if the URL may stay."""
        host = host_of(url)
        if len(self.domains):
            labels = host.split(".")
            for start in range(len(labels) - 1):
                domain = ".".join(labels[start:])
                if domain in self.domains and (start == 0 or registered_domain(domain)):
                    return "url.domain", domain
        if len(self.addresses) and (found := self._address(url, host)):
            return "url.address", found
        if self.hard or self.soft:
            words = set(_MARKS.split(url.lower()))
            if found := sorted(words & self.hard):
                return "url.hard_word", found[0]
            if len(found := sorted(words & self.soft)) >= self.soft_limit:
                return "url.soft_words", " ".join(found)
        if self.subwords and (found := self.subwords.find_matches_as_strings(squeeze(url))):
            return "url.subword", found[0]
        if self.easylist and (found := self.easylist.blocks(url, host)):
            return "url.easylist", found
        return "", ""

    def _address(self, url: str, host: str) -> str:
        """The listed address that the URL is, or lies below: entries are host and path, without scheme, `www.` and closing slash."""
        rest = url.strip().lower().partition("://")[2]
        path = rest[len(rest.partition("/")[0]) :]
        address = (host + path).removeprefix("www.")
        steps = [match.start() for match in re.finditer(r"[/?#]", address)][:64]
        return next((address[:step] for step in (*steps, len(address)) if address[:step] in self.addresses), "")


def squeeze(text: str) -> str:
    """Lower-case ASCII letters and digits alone."""
    return _MARKS.sub("", text.lower())


def _clean(items: Iterable[str]) -> list[str]:
    return [entry for item in items if (entry := item.strip().lower())]
