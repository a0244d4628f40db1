"""Reads the threshold files that lie beside this one.

A file names the lid.176 code of its language (`language`), stop words, and under `rules` what replaces the English
values: "family.rule: {min, max}"; an empty mapping switches a rule, or a whole family, off. A language without a file is
judged by the published English thresholds, except that nothing is asked of its stop words (nobody published any for it).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

import yaml


@dataclass(frozen=True)
class Thresholds:
    """`bounds`: rule or family -> (low, high), None is open. `stop_words` is empty where none are known."""

    language: str
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    stop_words: frozenset[str] = frozenset()


# Rae et al. 2021, section A.1.1
ENGLISH = Thresholds("en", {}, frozenset({"the", "be", "to", "of", "and", "that", "have", "with"}))


def of(language: str) -> Thresholds:
    """The thresholds of a language by lid.176's code; English ones without stop words if it has no file."""
    return _all().get(language) or Thresholds(language, {"gopher_quality.stop_words": (None, None)})


def languages() -> list[str]:
    """Codes with thresholds of their own."""
    return sorted(_all())


@cache
def _all() -> dict[str, Thresholds]:
    known = {"en": ENGLISH}
    for entry in sorted(resources.files("filters.thresholds").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".yaml"):
            content = yaml.safe_load(entry.read_text(encoding="utf-8"))
            bounds = {rule: (bound.get("min"), bound.get("max")) for rule, bound in content["rules"].items()}
            known[content["language"]] = Thresholds(content["language"], bounds, frozenset(content["stop_words"]))
    return known
