"""URL lists, words and EasyList-like rules."""

import gzip
import io
import random
import tarfile

import numpy as np
import pytest

from filters.blocklists import HashSet, entries, hash_set
from filters.easylist import EasyList
from filters.urls import UrlRules, host_of, registered_domain


def test_entries_given_in_a_recipe():
    rules = UrlRules.of(domains=["bad.example"], hard=["casino"], soft=["free", "win"])
    assert rules.judge("https://www.bad.example/x") == ("url.domain", "bad.example")
    assert rules.judge("https://notbad.example/x") == ("", "")
    assert rules.judge("https://a.org/Casino/1")[0] == "url.hard_word"
    assert rules.judge("https://a.org/free/")[0] == "" and rules.judge("https://a.org/free-win/")[0] == "url.soft_words"
    assert host_of("https://User@WWW.Example.ORG.:8080/p") == "www.example.org" and host_of("http://[::1/") == ""


def test_registered_domains(shared_data, tmp_path):
    other = str(shared_data / "blocklists/public_suffix_list.dat.gz")
    for suffixes in ("", other):
        assert registered_domain("a.b.example.co.uk", suffixes) == "example.co.uk"
        assert registered_domain("co.uk", suffixes) == "" and registered_domain("10.0.0.1", suffixes) == ""


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "domains").write_text("# comment\nBad.Example\n0.0.0.0 ads.example  # hosts file\n\nco.uk\nworse.example")
    with gzip.open(tmp_path / "urls.gz", "wt") as file:
        file.write("good.example/but/here\nother.example/page.html\n")
    (tmp_path / "sub").write_text("badword\n")
    (tmp_path / "soft").write_text("win\nfree\nwin\n")
    return tmp_path


def test_lists_from_files(lists):
    rules = UrlRules.load(domains=(f"{lists}/domains",), addresses=(f"{lists}/urls.gz",), subwords=(f"{lists}/sub",), soft=(f"{lists}/soft",))
    reasons = {
        "http://x.bad.example/": "url.domain",
        "http://ads.example": "url.domain",
        "http://worse.example": "url.domain",
        "http://anything.co.uk/": "",  # a public suffix blocks nobody below it
        "https://www.good.example/but/here/and/below?x": "url.address",
        "https://good.example/but/hereafter": "",
        "https://other.example/page.html": "url.address",
        "https://fine.example/a-bad-WORD-here": "url.subword",
        "https://fine.example/free/win": "url.soft_words",
        "https://fine.example/free": "",
    }
    assert {url: rules.judge(url)[0] for url in reasons} == reasons
    assert entries(f"{lists}/soft") == ["win", "free"]
    with pytest.raises(ValueError, match="no list or model .*missing"):
        UrlRules.load(domains=(f"{lists}/missing",))


def test_hashed_sets_hold_exactly_their_entries_across_chunks(monkeypatch):
    monkeypatch.setattr("filters.blocklists.CHUNK", 97)
    rng = random.Random(7)
    words = {"".join(rng.choice("abc.-0") for _ in range(rng.randint(1, 12))) for _ in range(3000)}
    words = {word for word in words if word.strip()}
    held = HashSet.of_lines(io.BytesIO("\n".join(sorted(words)).encode()))
    assert len(held) == len(words) and all(word in held for word in words)
    assert not any(f"{word}x" in held for word in words if f"{word}x" not in words)
    assert "a" not in HashSet(np.zeros(0, np.uint64))


def test_ut1_lists(shared_data, tmp_path):
    with tarfile.open(shared_data / "blocklists/ut1-blacklists.tar.xz") as archive:
        for name in ("domains", "urls"):
            (tmp_path / name).write_bytes(archive.extractfile(f"blacklists/gambling/{name}").read())
    rules = UrlRules.load(domains=(f"{tmp_path}/domains",), addresses=(f"{tmp_path}/urls",))
    domains = entries(f"{tmp_path}/domains")
    assert len(domains) > 1000 and len(hash_set((f"{tmp_path}/domains",))) == len(domains)
    assert all(rules.judge(f"http://www.{domain}/x")[0] for domain in domains[::50])
    assert rules.judge("https://en.wikipedia.org/wiki/Poker") == ("", "")


RULES = """! comment
[Adblock Plus 2.0]
||ads.example^
||popup.example^$popup
||tracker.example^$third-party
||cdn.example/banner/*
|https://exact.example/start
/sponsored/*/offer.
.php?ad=
end.html|
/^https?:\\/\\/regex/
example.org##.ad
script.js$script
@@||ads.example/about^
@@||kind.example^
||kind.example^
"""


def test_easylist_rules_that_speak_of_pages():
    rules = EasyList(RULES.splitlines())
    verdicts = {
        "https://ads.example/": True,
        "https://sub.ads.example:8080/x": True,
        "https://notads.example/": False,
        "https://ads.example/about": False,  # excepted
        "https://popup.example/": True,
        "https://tracker.example/": False,  # only as a part of somebody else's page
        "https://x.cdn.example/banner/1": True,
        "https://exact.example/start/more": True,
        "http://exact.example/start": False,
        "https://a.example/sponsored/x/y/offer.html": True,
        "https://a.example/x.PHP?ad=1": True,
        "https://a.example/the-end.html": True,
        "https://a.example/the-end.html?x": False,
        "https://regex/": False,
        "https://a.example/script.js": False,
        "https://kind.example/": False,
    }
    assert {url: bool(rules.blocks(url, host_of(url))) for url in verdicts} == verdicts


def test_easylist_itself(shared_data):
    rules = UrlRules.load(easylists=(str(shared_data / "blocklists/easylist.txt.gz"),))
    assert len(rules.easylist) > 30_000
    assert rules.judge("https://ad.doubleclick.net/x")[0] == "" or rules.judge("https://ad.doubleclick.net/x")[0] == "url.easylist"
    clean = ["https://en.wikipedia.org/wiki/Bridge", "https://docs.python.org/3/library/re.html", "https://www.debian.org/doc/"]
    assert [rules.judge(url)[0] for url in clean] == ["", "", ""]
    assert rules.judge("https://example.org/ads/leaderboard.html")[0] == "url.easylist"
