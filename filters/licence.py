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
    (re.compile(r"spdx\.org/licenses/([\w.+-]+?)(?:\.html|\.json)?(?:$|[\s\"'#?])", re.IGNORECASE), "{}"),
    (re.compile(r"apache\.org/licenses/LICENSE-(2\.0)", re.IGNORECASE), "apache-{}"),
    (re.compile(r"opendatacommons\.org/licenses/(by|odbl|pddl)", re.IGNORECASE), "odc-{}"),
    (re.compile(r"nationalarchives\.gov\.uk/doc/open-government-licen[cs]e/(?:version/)?(\d)?", re.IGNORECASE), "ogl-uk-{}"),
    (re.compile(r"(unlicense)\.org", re.IGNORECASE), "{}"),
)
CLASSES = ("public-domain", "permissive", "attribution", "share-alike", "non-commercial", "no-derivatives", "unknown")
# What the beginning of an identifier says; the first that fits. Copyleft, weak or strong, is share-alike.
_CLASSES = (
    ("public-domain", ("cc0", "public-domain", "odc-pddl", "unlicense", "0bsd", "wtfpl")),
    ("share-alike", ("gnu-", "gpl", "lgpl", "agpl", "gfdl", "mpl", "epl", "eupl", "odc-odbl", "cddl", "osl")),
    ("attribution", ("cc-by", "odc-by", "ogl-uk")),
    ("permissive", ("apache", "mit", "bsd", "isc", "zlib", "bsl-1", "python", "psf", "postgresql", "artistic", "unicode")),
)


def identify(text: str) -> str:
    """The identifier of a licence given as URL or phrase, or "" if it names none known."""
    if match := _DEED.search(text) or _PHRASE.search(text):
        return "-".join(part.lower() for part in ("cc", *match.groups()) if part)
    if match := _PUBLIC_DOMAIN.search(text):
        return {"zero": "cc0-1.0"}.get(match.group(1).lower(), "public-domain")
    for pattern, name in _NAMED:
        if match := pattern.search(text):
            return name.format((match.group(1) or "").lower()).rstrip("-")
    return ""


def licence_class(identifier: str) -> str:
    """One of CLASSES: what a licence asks for; "unknown" where none is given or it is not known."""
    identifier = identifier.lower()
    terms = identifier.split("-")
    if identifier.startswith("cc-"):
        for term, name in (("nd", "no-derivatives"), ("nc", "non-commercial"), ("sa", "share-alike")):
            if term in terms:
                return name
    return next((name for name, beginnings in _CLASSES if identifier.startswith(beginnings)), "unknown")
