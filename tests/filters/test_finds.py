"""Personal data, URLs, licences, language: hand-made cases."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.language import detect
from filters.licence import identify, licence_class
from filters.pii import count_pii, find_pii, mask_pii
from filters.urls import UrlRules, host_of


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.example.org today", ["emails"]),
        ("from 8.8.8.8 but not 10.0.0.1, 192.168.1.1, 300.1.1.1 or 1.2.3.4.5", ["ips"]),
        ("call +49 30 1234567 or (202) 555-0100", ["phones", "phones"]),
        ("on 2019-10-11 at 12:30, ISBN 978-3-16-148410-0, v1.2.3, 1,000,000 and @handle", []),
        ("a@b @ c@ @d.org", []),
    ],
)
def test_finds(text, kinds):
    assert [span.kind for span in find_pii(text)] == kinds


def test_masking_replaces_only_the_kinds_asked_for_and_tells_where():
    text = "a@b.org or 8.8.8.8"
    masked, spans = mask_pii(text, ("emails",))
    assert masked == "email@example.com or 8.8.8.8"
    assert [text[span.start : span.end] for span in spans] == ["a@b.org"]
    assert count_pii(mask_pii(text)[0])["ips"] == 0, "the stand-in address is reserved, so not public"


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="a1@.+-() \n", max_size=80))
def test_spans_never_overlap_and_masking_keeps_the_rest(text):
    masked, spans = mask_pii(text)
    assert all(first.end <= second.start for first, second in zip(spans, spans[1:], strict=False))
    rest = text
    for span in reversed(spans):
        rest = rest[: span.start] + rest[span.end :]
    assert spans or masked == text
    assert len(rest) <= len(masked)


def test_urls():
    rules = UrlRules.of(domains=["bad.example"], hard=["casino"], soft=["free", "win"])
    assert rules.judge("https://www.bad.example/x") == ("url.domain", "bad.example")
    assert rules.judge("https://notbad.example/x") == ("", "")
    assert rules.judge("https://a.org/Casino/1")[0] == "url.hard_word"
    assert rules.judge("https://a.org/free/")[0] == "" and rules.judge("https://a.org/free-win/")[0] == "url.soft_words"
    assert host_of("https://User@WWW.Example.ORG.:8080/p") == "www.example.org" and host_of("http://[::1/") == ""


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/deed.de", "cc-by-nc-sa-4.0", "non-commercial"),
        ("http://creativecommons.org/licenses/by/3.0/us/", "cc-by-3.0", "permissive"),
        ("//creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0", "permissive"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", "share-alike"),
        ("https://www.gnu.org/licenses/fdl-1.3.html", "gnu-fdl", "share-alike"),
        ("all rights reserved", "", "unknown"),
    ],
)
def test_licences(given, name, kind):
    assert identify(given) == name and licence_class(name) == kind


def test_languages():
    codes, scores = detect(["The cat sat on the mat and looked at the dog.", "Der Hund lief über die Straße und bellte.", "Le chat dort sur le lit.", "12 34", ""])
    assert codes == ["en", "de", "fr", "und", "und"]
    assert (scores[:3] > 0.7).all() and (scores[3:] == 0).all() and scores.max() <= 1
