"""What a URL says before its page is read: host, blocked domains, blocked words.

Lists belong to whoever runs the crawl; none ships with the project. A domain entry covers its subdomains.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

_WORD = re.compile(r"[a-z]+")


def host_of(url: str) -> str:
    """Lower-case host without port, user or trailing dot; "" if the URL has none."""
    try:
        return (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:  # e.g. an unclosed bracket of an IPv6 address
        return ""


@dataclass(frozen=True)
class UrlRules:
    """`domains` block hosts and their subdomains; one `hard` word blocks; `soft_limit` distinct `soft` words block (RefinedWeb: 2)."""

    domains: frozenset[str] = frozenset()
    hard: frozenset[str] = frozenset()
    soft: frozenset[str] = frozenset()
    soft_limit: int = 2

    @classmethod
    def of(cls, domains: Iterable[str] = (), hard: Iterable[str] = (), soft: Iterable[str] = (), soft_limit: int = 2) -> "UrlRules":
        clean = [frozenset(entry.strip().lower() for entry in entries if entry.strip()) for entries in (domains, hard, soft)]
        return cls(*clean, soft_limit)

    def judge(self, url: str) -> tuple[str, str]:
        """(reason, detail), both "" if the URL may stay."""
        labels = host_of(url).split(".")
        for start in range(len(labels) - 1):
            domain = ".".join(labels[start:])
            if domain in self.domains:
                return "url.domain", domain
        if self.hard or self.soft:
            words = set(_WORD.findall(url.lower()))
            if found := sorted(words & self.hard):
                return "url.hard_word", found[0]
            if len(found := sorted(words & self.soft)) >= self.soft_limit:
                return "url.soft_words", " ".join(found)
        return "", ""
