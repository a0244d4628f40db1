"""Licences by name: from the URL or phrase a page gives to one short identifier, and from there to a class.

Identifiers are SPDX-like and lower case ("cc-by-sa-4.0"); what cannot be named is kept as the URL it was given as.
"""

import re

# The path of a Creative Commons deed: /licenses/<terms>[/<version>[/<jurisdiction>]] or /publicdomain/<tool>.
_DEED = re.compile(r"creativecommons\.org/(?:licenses|licences)/(by(?:-(?:nc|nd|sa)){0,2}|sampling\+?)(?:/(\d\.\d))?", re.IGNORECASE)
_PUBLIC_DOMAIN = re.compile(r"creativecommons\.org/(?:publicdomain|licenses)/(zero|mark|publicdomain)", re.IGNORECASE)
_PHRASE = re.compile(r"\bCC[ -](BY(?:-(?:NC|ND|SA)){0,2})(?:[ -](\d\.\d))?\b", re.IGNORECASE)
_NAMED = (
    (re.compile(r"gnu\.org/(?:licenses|copyleft)/(fdl|gpl|lgpl|agpl)", re.IGNORECASE), "gnu-{}"),
    (re.compile(r"opensource\.org/licenses?/([\w.-]+)", re.IGNORECASE), "{}"),
    (re.compile(r"apache\.org/licenses/LICENSE-(2\.0)", re.IGNORECASE), "apache-{}"),
)


def identify(text: str) -> str:
    """The identifier of a licence given as URL or phrase, or "" if it names none known."""
    if match := _DEED.search(text) or _PHRASE.search(text):
        return "-".join(part.lower() for part in ("cc", *match.groups()) if part)
    if match := _PUBLIC_DOMAIN.search(text):
        return {"zero": "cc0-1.0"}.get(match.group(1).lower(), "public-domain")
    for pattern, name in _NAMED:
        if match := pattern.search(text):
            return name.format(match.group(1).lower())
    return ""


def licence_class(identifier: str) -> str:
    """"permissive", "share-alike", "non-commercial", "no-derivatives", "other" or "unknown" (none given)."""
    if not identifier:
        return "unknown"
    parts = identifier.split("-")
    if "nd" in parts:
        return "no-derivatives"
    if "nc" in parts:
        return "non-commercial"
    if "sa" in parts or identifier.startswith("gnu-"):
        return "share-alike"
    if identifier.startswith(("cc-by", "cc0", "public-domain", "apache", "mit", "bsd")):
        return "permissive"
    return "other"
