"""A plan adds up or is refused, naming the source and the number."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import UserError
from pipelines.mixture import Available, Mixture, Phase, Source, load_mixture, plan, save_mixture
from pipelines.mixture.planner import apportion


def mixture(weights=(45, 55), repetition=1.0, **values):
    named = zip("abcdef", weights, strict=False)
    sources = [Source(name=name, dataset=f"/data/{name}", weight=weight, max_repetition=repetition) for name, weight in named]
    return Mixture(**{"name": "m", "sequence_length": 128, "batch_size": 8, "sources": sources, **values})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 10_000))
def test_apportionment_is_exact_and_within_one(shares, total):
    counts = apportion({str(index): Fraction(share) for index, share in enumerate(shares)}, total)
    assert sum(counts.values()) == total
    for index, share in enumerate(shares):
        assert abs(counts[str(index)] - share * total / sum(shares)) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.5, 1.0)), min_size=1, max_size=5), st.integers(1, 40))
def test_achieved_weights_are_weights_of_tokens(sources, thousands):
    weights = [weight for weight, _ in sources]
    held = {name: Available(tokens=int(10**7 * 128 * fill), windows=10**7) for name, (_, fill) in zip("abcde", sources, strict=False)}
    planned = plan(mixture(weights, tokens=thousands * 100_000, rounding=10), held)
    shares = planned.phases[0].shares
    assert sum(share.sequences for share in shares) == planned.steps * 8
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share.tokens - planned.tokens * weight / sum(weights)) <= 128 * 2  # whole sequences
    assert thousands * 100_000 - 8 * 128 <= planned.tokens <= thousands * 100_000 + 128 * len(weights)


def test_a_shortfall_is_refused_with_source_and_number():
    with pytest.raises(UserError, match=r"source 'b' falls 4,736 tokens short \(54,656 tokens asked, 49,920 available"):
        plan(mixture(tokens=100_000), {"a": 100_000, "b": 49_920})


def test_too_many_epochs_are_refused():
    with pytest.raises(UserError, match=r"source 'b' would be repeated 5\.50 times, max_repetition is 2"):
        plan(mixture(tokens=102_400, repetition=2), {"a": 102_400, "b": 10_240})
    planned = plan(mixture(tokens=102_400, repetition=5.5), {"a": 102_400, "b": 10_240})
    assert planned.epochs("b") == 5.5


def test_phases_are_counted_together():
    phases = (Phase(tokens=51_200, weights={"a": 1}), Phase(tokens=51_200, weights={"a": 1, "b": 1}))
    planned = plan(mixture(phases=phases), {"a": 76_800, "b": 25_600})
    assert [phase.steps for phase in planned.phases] == [50, 50]
    assert planned.phases[1].first_step == 50
    assert planned.epochs("a") == 1
    with pytest.raises(UserError, match="source 'a' falls 128 tokens short"):
        plan(mixture(phases=phases), {"a": 76_672, "b": 25_600})


def test_rounding_that_starves_a_source_is_refused():
    with pytest.raises(UserError, match="rounding starves source 'b' in phase 1: 12 tokens asked, 0 whole sequences"):
        plan(mixture((999, 1), tokens=12_800), {"a": 10**6, "b": 10**6})


def test_nothing_and_too_little():
    with pytest.raises(UserError, match="source 'b' has no tokens"):
        plan(mixture(tokens=10_000), {"a": 10_000, "b": 0})
    with pytest.raises(UserError, match="do not fill one step"):
        plan(mixture(tokens=1000), {"a": 10_000, "b": 10_000})


def test_all_takes_as_much_as_the_scarcest_source_allows():
    held = {"a": 100_000, "b": 20_000}
    planned = plan(mixture((1, 1), repetition=2, tokens="all"), held)
    assert 38_000 < planned.phases[0].shares[1].tokens <= 40_192
    assert planned.epochs("b") <= 2
    with pytest.raises(UserError):
        plan(mixture((1, 1), repetition=2, tokens=planned.tokens + 4 * 8 * 128), held)


def test_the_file_and_its_mistakes(tmp_path):
    saved = mixture(tokens=5000).model_copy(update={"sources": (Source(name="web", dataset=str(tmp_path / "deduped"), weight=1),)})
    path = save_mixture(saved, tmp_path / "recipes" / "m.yaml")
    assert "../deduped" in path.read_text() and str(tmp_path) not in path.read_text()
    assert load_mixture(path) == saved
    assert load_mixture(path, ["seed=3"]).seed == 3
    with pytest.raises(UserError, match="batch_sise.*batch_size"):
        path.write_text(path.read_text().replace("batch_size", "batch_sise"))
        load_mixture(path)
    with pytest.raises(ValueError, match="two sources are called 'a'"):
        Mixture(sources=[Source(name="a", dataset="x", weight=1)] * 2)


def test_paths_seen_from_the_working_folder_survive_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_mixture(Mixture(sources=[Source(name="web", dataset="run/deduped", weight=1)]), "run/m.yaml")
    assert load_mixture(path).sources[0].dataset == str(tmp_path / "run/deduped")


def test_a_plan_prints_as_a_tree():
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    console.print(plan(mixture(tokens=102_400), {"a": 1_024_000, "b": 1_024_000}))
    text = console.export_text()
    assert "102,400 tokens = 100 steps" in text
    assert "45.00%" in text and "phase 1: steps 0 to 100 of 8 x 128" in text


def test_the_template_loads():
    template = load_mixture("mixture-demo")
    assert {source.name: source.weight for source in template.sources} == {"web": 45, "problems": 55}
