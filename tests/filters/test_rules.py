"""Rules are tables: bounds, order, per-language values, recipes' overrides."""

import math

import pyarrow as pa
import pytest

from filters import thresholds
from filters.families import FAMILIES
from filters.fineweb import FINEWEB
from filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from filters.rules import Bound, at_least, at_most, between, decide, explain, resolve, rules
from filters.signals import SIGNAL_TYPE, measure_one

FAMILY = rules("toy", ("size", between(2, 4)), ("share", "part", at_most(0.5)))


def _signals(**columns):
    return pa.StructArray.from_arrays([pa.array(values) for values in columns.values()], list(columns))


def test_first_broken_rule_is_the_reason_and_bounds_are_inclusive():
    keep, reason, detail = decide(_signals(size=[2, 4, 5, 1, 3], part=[0.5, 0.0, 0.9, 0.9, 0.51]), ["en"] * 5, [FAMILY])
    assert keep.tolist() == [True, True, False, False, False]
    assert reason == ["", "", "toy.size", "toy.size", "toy.share"]
    assert detail[4] == "part 0.51, must be <= 0.5"


def test_missing_values_break_nothing_and_missing_signals_are_errors():
    assert decide(_signals(size=[None, 3], part=[0.1, math.nan]), ["", ""], [FAMILY])[0].tolist() == [True, True]
    with pytest.raises(KeyError, match="part"):
        decide(_signals(size=[3]), [""], [FAMILY])


def test_overrides_by_rule_and_by_family():
    signals = _signals(size=[9], part=[0.9])
    assert decide(signals, [""], [FAMILY], {"toy.size": Bound()})[1] == ["toy.share"]
    assert decide(signals, [""], [FAMILY], {"toy": Bound()})[0].all()
    assert decide(signals, [""], [FAMILY], {"toy.size": at_least(9), "toy.share": at_most(1)})[0].all()


def test_explain_shows_every_decision_in_order():
    decisions = explain({"size": 5, "part": 0.1}, "en", [FAMILY])
    assert [(decision.rule, decision.value, decision.passed) for decision in decisions] == [("toy.size", 5, False), ("toy.share", 0.1, True)]
    assert decisions[0].bound == "2..4"


def test_languages_carry_their_own_published_values():
    french = {rule.reason: rule.bound for rule in resolve([GOPHER_REPETITION, GOPHER_QUALITY, FINEWEB, FAMILIES["c4"], FAMILIES["language"]], "fr")}
    assert french["gopher_repetition.duplicate_lines"] == at_most(0.264)
    assert french["gopher_quality.mean_word_length"] == between(2, 11)
    assert french["fineweb.line_punctuation"] == at_least(0.1)
    assert french["fineweb.newlines_per_word"] == at_most(0.185)
    assert french["language.score"] == at_least(0.824)
    assert not any(reason.startswith("c4.") or reason == "fineweb.short_lines" for reason in french)
    english = {rule.reason: rule.bound for rule in resolve([GOPHER_QUALITY], "en")}
    assert english["gopher_quality.words"] == between(50, 100_000) and english["gopher_quality.stop_words"] == at_least(2)
    assert "gopher_quality.stop_words" not in {rule.reason for rule in resolve([GOPHER_QUALITY], "eo")}, "nobody published stop words for it"


def test_every_threshold_file_names_rules_that_exist():
    known = set(FAMILIES) | {rule.reason for family in FAMILIES.values() for rule in family}
    assert len(thresholds.languages()) >= 25
    for language in thresholds.languages():
        assert set(thresholds.of(language).bounds) <= known, language
        assert len(thresholds.of(language).stop_words) >= 2
        assert isinstance(language, str) and len(language) == 2


def test_every_rule_reads_a_signal_that_is_measured():
    for family in FAMILIES.values():
        for rule in family:
            assert SIGNAL_TYPE.get_field_index(rule.signal) >= 0, rule


def test_german_and_french_prose_pass_where_english_stop_words_would_refuse_them():
    german = "Die alte Brücke über den Fluss wurde im vergangenen Jahr von der Stadt erneuert und ist seitdem wieder für den Verkehr offen. " * 1
    german += "Viele Menschen aus den Dörfern der Umgebung kamen zur Eröffnung, und das Fest dauerte bis in die Nacht. "
    german += "Der Bürgermeister dankte allen, die mit ihrer Arbeit dazu beigetragen hatten, dass das Bauwerk erhalten blieb."
    signals = measure_one(german, "de")
    assert signals["stop_words"] >= 2 and measure_one(german, "en")["stop_words"] < 2
    assert all(decision.passed for decision in explain(signals, "de", [GOPHER_QUALITY, GOPHER_REPETITION, FINEWEB]))
