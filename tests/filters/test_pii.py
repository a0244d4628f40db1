"""Personal data: hand-made cases, and checks against python-stdnum on fresh random numbers."""

import ipaddress
import pkgutil
import random
import re
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn
from stdnum.iso7064 import mod_97_10

from filters.pii import _IBAN_LENGTHS as lengths
from filters.pii import STAND_INS, find_pii, is_card, is_iban, is_public, mask_pii

SEED = secrets.randbits(32)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.example.org today", ["emails"]),
        ("from 8.8.8.8 but not 10.0.0.1, 192.168.1.1, 300.1.1.1 or 1.2.3.4.5", ["ips"]),
        ("routed by 2606:4700:4700::1111, not fe80::1, ::1, 2001:db8::1, std::vector, a::b or 12:30:45", ["ips"]),
        ("call +49 30 1234567 or (202) 555-0100 or 202 555 0100 or 1-855-846-2895", ["phones"] * 4),
        ("on 2019-10-11 at 12:30, ISBN 978-3-16-148410-0, v1.2.3, 1,000,000, 100 200 3000 and @handle", []),
        ("a@b @ c@ @d.org", []),
        ("IBAN DE89 3704 0044 0532 0130 00, GB33BUKB20201555555555.", ["ibans", "ibans"]),
        ("not DE89 3704 0044 0532 0130 01, not XX89 3704 0044 0532 0130 00, not ADE89370400440532013000", []),
        ("pay with 4111 1111 1111 1111, 3782-822463-10005 or 5555555555554444", ["cards"] * 3),
        ("not 4111 1111 1111 1112, not 1234567890123456, not 0000000000000000", []),
    ],
)
def test_finds(text, kinds):
    assert [span.kind for span in find_pii(text)] == kinds


def test_masking_replaces_only_the_kinds_asked_for_and_tells_where_they_are_now():
    text = "a.long.name@b.org or 8.8.8.8, 4111 1111 1111 1111"
    masked, spans = mask_pii(text, ("emails", "cards"))
    assert masked == f"email@example.com or 8.8.8.8, {STAND_INS['cards']}"
    assert [masked[start:end] for _, start, end in spans] == ["email@example.com", "8.8.8.8", STAND_INS["cards"]]
    assert not any(span.kind == "ips" for span in find_pii(mask_pii(text)[0])), "the stand-in address is reserved, so not public"
    assert is_card(STAND_INS["cards"]) and is_iban(STAND_INS["ibans"]), "a stand-in looks like what it stands for"


def _bban(rng, length):
    return "".join(rng.choice("0123456789") for _ in range(length))


def test_lengths_are_the_registrys():
    lines = pkgutil.get_data("stdnum", "iban.dat").decode().splitlines()
    registry = {line[:2]: 4 + sum(map(int, re.findall(r"(\d+)!", line.partition("bban=")[2]))) for line in lines if re.match("[A-Z]{2} ", line)}
    assert len(registry) > 70 and registry == lengths


def test_ibans_agree_with_an_independent_checker():
    rng, right = random.Random(SEED), 0
    for _ in range(600):
        country = rng.choice(sorted(lengths))
        account = _bban(rng, lengths[country] - 4)
        check = iban.calc_check_digits(country + "00" + account) if rng.random() < 0.5 else f"{rng.randrange(100):02d}"
        number = country + check + account
        valid = mod_97_10.is_valid(number[4:] + number[:4])
        assert is_iban(number) == valid, (SEED, number)
        spaced = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
        assert any(span.kind == "ibans" for span in find_pii(f"to {spaced} by Monday")) == valid, (SEED, spaced)
        right += valid
    assert 250 < right < 400


def test_cards_agree_with_an_independent_checker():
    rng, found = random.Random(SEED), 0
    for _ in range(1000):
        prefix, length = rng.choice([("4", 16), ("51", 16), ("2720", 16), ("37", 15), ("6011", 16), ("3530", 16), ("36", 14), ("62", 17)])
        number = prefix + _bban(rng, length - len(prefix))
        if rng.random() < 0.5:
            number = number[:-1] + luhn.calc_check_digit(number[:-1])
        assert is_card(number) == luhn.is_valid(number), (SEED, number)
        assert any(span.kind == "cards" for span in find_pii(f"no. {number}.")) == luhn.is_valid(number), (SEED, number)
        found += luhn.is_valid(number)
    assert 450 < found < 700
    assert not is_card("9" + _bban(rng, 14) + "0"), "no issuer"


def test_public_addresses():
    rng = random.Random(SEED)
    for _ in range(300):
        address = str(ipaddress.IPv4Address(rng.getrandbits(32)))
        assert is_public(address) == ipaddress.ip_address(address).is_global
        assert (find_pii(f"at {address},") != []) == ipaddress.ip_address(address).is_global, address
    assert is_public("2a00:1450:4001:82f::200e") and not is_public("fd00::1") and not is_public("1.2.3.04")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="a1@.+-() \n:4DE", max_size=80))
def test_spans_never_overlap_and_masking_keeps_the_rest(text):
    finds = find_pii(text)
    masked, spans = mask_pii(text)
    assert [span.kind for span in spans] == [find.kind for find in finds]
    assert all(first.end <= second.start for first, second in zip(finds, finds[1:], strict=False))

    def without(string, marks):
        for _, start, end in reversed(marks):
            string = string[:start] + string[end:]
        return string

    assert without(text, finds) == without(masked, spans)


@pytest.mark.parametrize("piece", ["1", "1 ", "+1", "a@", ":", "a:", "AB12 ", "(", "1.", "2001:", "4444 ", "00000/", "1(2", "DE89 3704 "])
def test_hostile_repetition_stays_linear(piece):
    """Work is counted, not time: a find's neighbourhood is bounded, so a text twice as long has at most about twice the finds and no deep recursion."""
    once, twice = len(find_pii(piece * 5_000)), len(find_pii(piece * 10_000))
    assert twice <= 2 * once + 2
