"""EasyList-like rules (Adblock Plus filter syntax) on the addresses of pages.

Of the syntax, what an address alone can answer: `||domain^`, anchors `|`, wildcards `*`, separators `^`, regular text, exceptions `@@`. Rules for
parts of a page (`script`, `image`, `third-party`, `domain=`), for elements (`##`), and `/regular expressions/` do not apply to a page
that is opened by itself and are left out; `document` and `popup` do apply. Where the list's author wrote a plain domain, its subdomains are meant too.

Nearly all rules are plain domains: a set. The rest are looked up by their longest literal with Aho-Corasick, then checked.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

import ahocorasick_rs

from filters.blocklists import read_lines

_OF_PAGES = frozenset({"document", "doc", "popup", "all", "important", "~third-party", "first-party", "1p", "~subdocument"})
_OTHER_PARTS = frozenset("script image stylesheet object xmlhttprequest subdocument ping websocket webrtc media font other".split())
_DOMAIN = re.compile(r"\|\|([a-z0-9_-]+(?:\.[a-z0-9_-]+)+)\^?")
_SEPARATOR = r"(?:[^\w\-.%]|$)"
_AFTER_HOST = r"^[a-z][a-z0-9+.\-]*://(?:[^/?#]*\.)?"


class EasyList:
    """`blocks(url)` gives the rule that blocks a page, "" if none does or an exception lets it through."""

    def __init__(self, lines: Iterable[str]):
        self._domains: tuple[set[str], set[str]] = (set(), set())  # blocked, excepted
        self._rules: list[tuple[bool, str]] = []
        literals = []
        for line in lines:
            excepted, rule = _rule(line.strip())
            if not rule:
                continue
            if match := _DOMAIN.fullmatch(rule):
                self._domains[excepted].add(match.group(1))
            elif literal := max(re.split(r"[*^|]+", rule), key=len):
                self._rules.append((excepted, rule))
                literals.append(literal)
        self._automaton = ahocorasick_rs.AhoCorasick(literals) if literals else None

    def __len__(self) -> int:
        return sum(map(len, self._domains)) + len(self._rules)

    def blocks(self, url: str, host: str) -> str:
        url = url.strip().lower()
        hosts = [host[place:] for place in range(len(host)) if place == 0 or host[place - 1] == "."]
        found = next((f"||{name}^" for name in hosts if name in self._domains[0]), "")
        if any(name in self._domains[1] for name in hosts):
            return ""
        for index in sorted({match[0] for match in self._automaton.find_matches_as_indexes(url, overlapping=True)}) if self._automaton else ():
            excepted, rule = self._rules[index]
            if (excepted or not found) and _pattern(rule).search(url):
                if excepted:
                    return ""
                found = rule
        return found


@lru_cache(maxsize=4)
def load_easylist(uris: tuple[str, ...]) -> EasyList:
    return EasyList(line for uri in uris for line in read_lines(uri))


def _rule(line: str) -> tuple[bool, str]:
    """(is it an exception, its address pattern in lower case), the pattern "" where the rule says nothing of pages."""
    if not line or line.startswith(("!", "[")) or "##" in line or "#@#" in line or "#?#" in line or "#$#" in line:
        return False, ""
    excepted = line.startswith("@@")
    pattern, _, options = line.removeprefix("@@").partition("$")
    if pattern.startswith("/") and pattern.endswith("/") and len(pattern) > 1:
        return False, ""
    named = {option.strip() for option in options.split(",") if option.strip()}
    if any(option not in _OF_PAGES and option.removeprefix("~") not in _OTHER_PARTS for option in named):
        return False, ""
    if named & _OTHER_PARTS and not named & _OF_PAGES:
        return False, ""
    return excepted, pattern.lower()


@lru_cache(maxsize=4096)
def _pattern(rule: str) -> re.Pattern[str]:
    """A rule's regular expression; `.*` only ever between literals, so matching is at worst quadratic in an address."""
    start, rule = (_AFTER_HOST, rule[2:]) if rule.startswith("||") else ("^", rule[1:]) if rule.startswith("|") else ("", rule)
    end, rule = ("$", rule[:-1]) if rule.endswith("|") else ("", rule)
    body = "".join({"*": ".*", "^": _SEPARATOR}.get(piece, re.escape(piece)) for piece in re.split(r"([*^])", rule.strip("*")))
    return re.compile(start + body + end)
