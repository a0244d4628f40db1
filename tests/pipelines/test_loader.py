"""The loader never loses count: any ranks, killed anywhere, resumed again and again, read every token as often as planned."""

import os
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make

from pipelines.errors import UserError
from pipelines.loader import SOURCE, SPAN_DOCUMENT, SPAN_LENGTH, SPAN_OFFSET, SPAN_SHARD, TokenStream
from pipelines.loader.lanes import LaneReader
from pipelines.loader.shuffle import Shuffle
from pipelines.mixture import After, Available, Mixture, Phase, Source, plan
from pipelines.mixture.timeline import drawn_in, drawn_of
from pipelines.packing import Indexed, whole_documents, window_index
from pipelines.shards import ShardSet

PHASES = (Phase(tokens=4000, weights={"web": 1}), Phase(tokens=6000, weights={"web": 40, "problems": 60}))


@pytest.fixture(scope="module", params=["concat", "best_fit", "pad"])
def made(tmp_path_factory, request):
    return make(tmp_path_factory.mktemp(request.param), packing=request.param, phases=PHASES)


def tokens_of(batch):
    """The (source, shard, document, offset) of every token of a batch."""
    keys = (SOURCE, SPAN_SHARD, SPAN_DOCUMENT)
    return Counter((*(int(span[key]) for key in keys), int(span[SPAN_OFFSET]) + k) for span in batch.spans for k in range(span[SPAN_LENGTH]))


def read_all(uri):
    total = Counter()
    for batch in TokenStream(uri):
        total += tokens_of(batch)
    return total


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 400), min_size=1, max_size=6).filter(any), data=st.data())
def test_every_prefix_holds_every_share(counts, data):
    whole = sum(counts)
    before = [0] * len(counts)
    for total in range(whole + 1):
        drawn = drawn_of(counts, total)
        assert sum(drawn) == total
        assert all(a <= b for a, b in zip(before, drawn, strict=True))
        assert all(abs(n - count * total / whole) <= len(counts) / 2 + 1 for n, count in zip(drawn, counts, strict=True))
        before = drawn
    assert before == counts


def test_huge_plans_are_computed_at_once():
    counts = [10**10, 3 * 10**9, 7]
    drawn = drawn_of(counts, 6_500_000_003)
    assert sum(drawn) == 6_500_000_003 and abs(drawn[0] - 5 * 10**9) < 4 and drawn[2] in (3, 4)


def test_it_reads_exactly_what_was_planned(made):
    stream = TokenStream(made[2].uri)
    counted = Counter()
    for batch in stream:
        for (source, *_), n in tokens_of(batch).items():
            counted[stream.sources[source]] += n
    assert counted == stream.ledger()
    for name in stream.sources:
        planned = sum(share.tokens for phase in stream.plan.phases for share in phase.shares if share.source == name)
        assert abs(counted[name] - planned) <= 0.01 * planned + 32
    total = sum(counted.values())
    assert abs(counted["web"] / total - 0.64) < 0.01  # (4000 + 0.4 * 6000) / 10000, after packing; a window is 0.3 % of it
    first = stream.plan.phases[0].steps
    assert stream.ledger(first)["problems"] == 0 < stream.ledger(first + 1)["problems"]


def test_no_token_is_read_twice_before_every_token_was_read_once(made):
    counts = read_all(made[2].uri)
    for source in (0, 1):
        here = [n for (s, *_), n in counts.items() if s == source]
        everything = made[2].tokens[("web", "problems")[source]]
        seen = here + [0] * (everything - len(here))
        assert max(seen) - min(seen) <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kills_and_changing_worlds_lose_and_repeat_nothing(made, seed):
    """1 -> 2 -> 8 -> 3 -> ... ranks, killed at random steps, resumed from what rank 0 saved; more than two resumes in a row."""
    rng = random.Random(seed)
    uri, total, state = made[2].uri, Counter(), None
    steps, resumes = TokenStream(uri).steps, 0
    worlds = [1, 2, 8, 3]
    while state is None or state["step"] < steps:
        world = worlds[resumes % 4]
        ranks = [TokenStream(uri, rank=rank, world=world) for rank in range(world)]
        for stream in ranks:
            if state is not None:
                stream.load_state_dict(state)
        iterators = [iter(stream) for stream in ranks]
        unsaved = Counter()
        for _ in range(rng.randint(3, 14)):
            batches = [next(iterator, None) for iterator in iterators]
            if batches[0] is None:
                break
            for batch in batches:
                unsaved += tokens_of(batch)
            saved = [stream.state_dict() for stream in ranks]
            assert all(other == saved[0] for other in saved)
            if rng.random() < 0.3 or saved[0]["step"] == steps:  # a checkpoint; what comes after it is lost in the kill
                state, total, unsaved = saved[rng.randrange(world)], total + unsaved, Counter()
        resumes += 1
    assert resumes > 3
    assert total == read_all(uri)


def test_ranks_are_slices_of_one_batch(made):
    whole = TokenStream(made[2].uri).batch(3)
    for world in (1, 2, 3, 4):
        parts = [TokenStream(made[2].uri, rank=rank, world=world).batch(3) for rank in range(world)]
        for field in ("input_ids", "labels", "loss_mask", "seq_idx", "position_ids"):
            assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(whole, field))
    assert np.array_equal(TokenStream(made[2].uri, step=3).batch(3).input_ids, whole.input_ids)


def test_arrays_agree_with_a_slow_reading_of_provenance(made):
    """Rebuild rows token by token from the documents and compare every array."""
    _, _, shards = made
    stream = TokenStream(shards.uri)
    documents = {}
    for name in shards.sources:
        for shard in shards.shards(name):
            start = 0
            for index, end in enumerate(shard.ends.tolist()):
                mask = [1] * (end - start) if shard.mask is None else shard.mask[start:end].tolist()
                documents[shard.prefix, index] = (shard.ids[index], shard.tokens[start:end].tolist(), mask)
                start = end
    for step in (0, stream.plan.phases[0].steps, stream.steps - 1):
        batch = stream.batch(step)
        edges = []
        for row in range(6):
            ids, labels, mask, segment, position = [], [], [], [], []
            for number, span in enumerate(stream.provenance(step, row)):
                identity, tokens, learnt = documents[span.shard, span.document]
                assert identity == span.document_id and span.position == len(ids)
                edges.append(row * 32 + span.position)
                for k in range(span.length):
                    at = span.doc_offset + k
                    more = at + 1 < len(tokens)
                    ids.append(tokens[at])
                    labels.append(tokens[at + 1] if more else 0)
                    mask.append(int(more and learnt[at + 1]))
                    segment.append(number)
                    position.append(k)
            if len(ids) < 32:
                edges.append(row * 32 + len(ids))
            rest = 32 - len(ids)
            assert batch.input_ids[row].tolist() == ids + [2] * rest
            assert batch.labels[row].tolist() == labels + [0] * rest
            assert batch.loss_mask[row].tolist() == mask + [0] * rest
            assert batch.seq_idx[row].tolist() == segment + [len(set(segment))] * rest
            assert batch.position_ids[row].tolist() == position + list(range(rest))
        assert batch.cu_seqlens.tolist() == [*edges, 6 * 32]
        assert batch.tokens == sum(span.length for row in range(6) for span in stream.provenance(step, row))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 1000), seed=st.integers(0, 9), data=st.data())
def test_a_pass_is_a_permutation_with_an_inverse(n, seed, data):
    shuffle = Shuffle(n, seed, "pass", 0)
    order = shuffle.take(np.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    draw = data.draw(st.integers(0, n - 1))
    assert shuffle.inverse(int(order[draw])) == draw


def test_passes_have_different_orders_and_every_stretch_is_like_the_whole():
    n, rest = 64 * 100, 7
    first, second = (Shuffle(n + rest, 0, "web", epoch).take(np.arange(n + rest)) for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    for order in (first, second):
        strata = (order[:n].reshape(100, 64) * 64) // (n + rest)  # windows left over shift the strata by a window or so
        assert all(len(np.unique(stretch)) > 60 for stretch in strata)
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    together = [{frozenset(pair) for stretch in order[:n].reshape(100, 64).tolist() for pair in zip(stretch, stretch[1:])} for order in (first, second)]
    assert len(together[0] & together[1]) < n / 50  # windows that met in one pass are apart in the next


def test_validation_is_read_once_and_is_not_in_training(made):
    stream = TokenStream(made[2].uri, split="validation")
    counts = Counter()
    documents = set()
    for step, batch in enumerate(stream):
        counts += tokens_of(batch)
        documents |= {span.document_id for row in range(len(batch.input_ids)) for span in stream.provenance(step, row)}
    assert set(counts.values()) == {1}
    assert len(counts) == sum(stream.ledger().values())
    trained = {i for name in made[2].sources for shard in made[2].shards(name) for i in shard.ids}
    assert documents and not documents & trained
    only = TokenStream(made[2].uri, split="validation", sources=["problems"], batch_size=2)
    assert {span.source for row in range(2) for span in only.provenance(0, row)} == {"problems"}
    assert sum(batch.tokens for batch in only) == only.ledger()["problems"] == stream.ledger()["problems"]


def test_states_of_other_plans_are_refused(made, tmp_path):
    stream = TokenStream(made[2].uri, step=5)
    state = stream.state_dict()
    other = TokenStream(made[2].uri, mixture=made[0].model_copy(update={"seed": 1}))
    with pytest.raises(UserError, match="belongs to another plan"):
        other.load_state_dict(state)
    with pytest.raises(UserError, match="other shards"):
        TokenStream(made[2].uri, split="validation").load_state_dict(state)
    with pytest.raises(UserError, match="ledger"):
        stream.load_state_dict({**state, "ledger": {"web": 1, "problems": 2}})
    with pytest.raises(UserError, match="rank 2 is not within a world of 2"):
        TokenStream(made[2].uri, rank=2, world=2)
    with pytest.raises(UserError, match="outside this stream"):
        stream.seek(10**6)
    with pytest.raises(UserError, match="no token shards here"):
        TokenStream(str(tmp_path))


def test_a_changed_weight_leaves_what_was_read_alone(made):
    """New weights in a later phase: the earlier phase is the same, and the later one goes on with unread windows (Megatron #457)."""
    changed = (PHASES[0], Phase(tokens=2000, weights={"web": 90, "problems": 10}))
    before = TokenStream(made[2].uri)
    after = TokenStream(made[2].uri, mixture=made[0].model_copy(update={"phases": changed}))
    first = before.plan.phases[0].steps
    assert all(np.array_equal(before.batch(step).input_ids, after.batch(step).input_ids) for step in range(first))
    seen = Counter()
    for step in range(after.steps):
        seen += tokens_of(after.batch(step))
    web = [n for (source, *_), n in seen.items() if source == 0]
    assert len(web) < made[2].tokens["web"] and set(web) == {1}


CHANGES = [
    {},
    {"seed": 5},
    {"sequence_length": 96, "batch_size": 2},
    {"packing": "best_fit"},
    {"phases": (Phase(tokens=6000, weights={"web": 1}, sequence_length=16), Phase(tokens=9000, weights={"web": 1, "problems": 2}, sequence_length=64))},
]


@pytest.mark.parametrize("change", CHANGES, ids=["weights", "seed", "window", "packing", "phases"])
def test_a_following_plan_goes_on_with_unread_tokens(made, change):
    """Three plans one after the other, each cut short: no token is read twice before all were read once (Megatron #457)."""
    first = TokenStream(made[2].uri)
    state = TokenStream(made[2].uri, step=31).state_dict()
    total = Counter()
    for step in range(31):
        total += tokens_of(first.batch(step))
    sources = tuple(source.model_copy(update={"weight": weight, "max_repetition": 6}) for source, weight in zip(made[0].sources, (1, 3), strict=True))
    base = made[0].model_copy(update={"sources": sources, "phases": (), "tokens": 4000, **change})
    if base.phases:
        base = base.model_copy(update={"tokens": "all"})
    stops = []
    for until in (20, None):
        second = TokenStream(made[2].uri, mixture=base.model_copy(update={"after": After(plan=state["plan"], step=state["step"])}))
        until = second.steps if until is None else min(until, second.steps)
        for step in range(until):
            total += tokens_of(second.batch(step))
            check_spread(total, made[2])
        second.seek(until)
        state = second.state_dict()
        stops.append(state)
    assert sum(total.values()) == sum(first.ledger(31).values()) + sum(sum(stop["ledger"].values()) for stop in stops)
    assert max(total.values()) > 1  # some source did begin anew


def check_spread(total, shards):
    """Within a source, no token was read twice more often than another."""
    for number, name in enumerate(shards.sources):
        counts = [n for (source, *_), n in total.items() if source == number]
        least = min(counts) if len(counts) == shards.tokens[name] else 0
        assert max(counts, default=0) - least <= 1


def test_a_plan_after_another_knows_what_is_left(made):
    first = TokenStream(made[2].uri)
    once = tuple(source.model_copy(update={"max_repetition": 1}) for source in made[0].sources)
    changed = made[0].model_copy(update={"sources": once, "phases": (), "tokens": 9000, "after": After(plan=first.plan.digest, step=31)})
    with pytest.raises(UserError, match=r"source 'problems' falls [0-9,]+ tokens short .* read before"):
        TokenStream(made[2].uri, mixture=changed)
    with pytest.raises(UserError, match="no such plan"):
        TokenStream(made[2].uri, mixture=changed.model_copy(update={"after": After(plan="0123456789", step=1)}))
    with pytest.raises(UserError, match="step 99999 is after the end"):
        TokenStream(made[2].uri, mixture=changed.model_copy(update={"after": After(plan=first.plan.digest, step=99999)}))


def test_a_long_context_phase_reads_what_the_short_one_left(made):
    phases = (Phase(tokens=2000, weights={"web": 1}), Phase(tokens=1000, weights={"web": 1}, sequence_length=128, batch_size=2))
    stream = TokenStream(made[2].uri, mixture=made[0].model_copy(update={"phases": phases}))
    total, lengths = Counter(), set()
    for batch in stream:
        lengths.add(batch.input_ids.shape)
        total += tokens_of(batch)
    assert lengths == {(6, 32), (2, 128)} and set(total.values()) == {1}
    assert stream.ledger() == {"web": sum(total.values()), "problems": 0}
    span = stream.provenance(stream.steps - 1, 0)[0]
    shard = next(number for number, shard in enumerate(made[2].shards("web")) if shard.prefix == span.shard)
    assert (stream.steps - 1, 0) in [place[1:] for place in stream.places("web", shard, span.document)]


@pytest.mark.parametrize("packing", ["concat", "best_fit", "pad"])
def test_weights_hold_to_a_thousandth_after_packing(packing):
    """Sources of very different lengths, 3 : 7 by tokens: what whole stretches of the plan hold, padding not counted."""
    rng, windows = np.random.default_rng(0), {}
    for name, median in (("short", 40), ("long", 400)):
        lengths = np.maximum(rng.lognormal(np.log(median), 0.8, 2_000_000 // median), 2).astype(np.int64)
        runs = whole_documents([np.cumsum(part) for part in np.array_split(lengths, 3)])
        windows[name] = Indexed(np.frombuffer(window_index(runs, 256, packing), "<i8"), 256)
    held = {name: Available(tokens=each.tokens, windows=each.windows) for name, each in windows.items()}
    sources = [Source(name=name, dataset=name, weight=weight, max_repetition=3) for name, weight in (("short", 3), ("long", 7))]
    planned = plan(Mixture(sources=sources, sequence_length=256, batch_size=16, packing=packing), held)
    for step in (planned.steps // 3, planned.steps // 2, planned.steps):
        drawn = dict(zip(("short", "long"), drawn_in(planned.phases[0], step), strict=True))
        read = {lane.source: LaneReader(lane, [windows[lane.source]]).tokens(0, drawn[lane.source]) for lane in planned.lanes}
        assert abs(read["short"] / sum(read.values()) - 0.3) < 0.001


def test_remote_shards_are_read_through_a_cache_smaller_than_they_are(made, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path))
    monkeypatch.setenv("GRISTMILL_CACHE_GB", "3.2e-5")
    fsspec.filesystem("memory").put(made[2].uri, f"/{tmp_path.name}", recursive=True)
    there, here = TokenStream(f"memory://{tmp_path.name}"), TokenStream(made[2].uri)
    names = {f"{prefix}{end}" for name in made[2].sources for shard in made[2].shards(name) for prefix in [shard.prefix] for end in (".bin", ".ends", ".mask")}
    assert sum(os.path.getsize(made[2].path(name)) for name in names if os.path.exists(made[2].path(name))) > 32_000
    for step in range(0, here.steps, 7):
        assert np.array_equal(there.batch(step).input_ids, here.batch(step).input_ids)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 32_000


def test_document_ids_name_the_documents_between_boundaries(made):
    stream = TokenStream(made[2].uri)
    batch = stream.batch(stream.plan.phases[0].steps)
    names = iter(stream.names(batch.document_ids))
    for row in range(6):
        spans = stream.provenance(stream.plan.phases[0].steps, row)
        assert [next(names) for _ in spans] == [span.document_id for span in spans]
        if sum(span.length for span in spans) < 32:
            assert next(names) is None
    assert len(batch.document_ids) == len(batch.cu_seqlens) - 1


def test_opening_reads_no_tokens(made):
    shards = ShardSet.open(made[2].uri)
    shards.array, opened = (lambda name, *rest, original=shards.array: opened.append(name) or original(name, *rest)), []
    stream = TokenStream(shards)
    assert stream.ledger(stream.steps) and stream.places("web", 0, 3)
    assert opened and not [name for name in opened if name.endswith((".bin", ".mask", ".idx"))]
