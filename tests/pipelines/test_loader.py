"""The loader never loses count: any ranks, killed anywhere, resumed again and again, read every token as often as planned."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make

from pipelines.errors import UserError
from pipelines.loader import SOURCE, SPAN_DOCUMENT, SPAN_LENGTH, SPAN_OFFSET, SPAN_SHARD, TokenStream, drawn_of
from pipelines.mixture import Phase
from pipelines.shards import ShardSet

PHASES = (Phase(tokens=4000, weights={"web": 1}), Phase(tokens=6000, weights={"web": 40, "problems": 60}))


@pytest.fixture(scope="module", params=["concat", "best_fit"])
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
    assert abs(counted["web"] / total - 0.64) < 0.01  # (4000 + 0.4 * 6000) / 10000, after packing
    first = stream.plan.phases[0].steps
    assert stream.ledger(first)["problems"] == 0 < stream.ledger(first + 1)["problems"]


def test_no_token_is_read_twice_before_every_token_was_read_once(made):
    counts = read_all(made[2].uri)
    for source in (0, 1):
        here = [n for (s, *_), n in counts.items() if s == source]
        everything = made[2].available()[("web", "problems")[source]].tokens
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


def test_epochs_have_different_orders(made):
    stream = TokenStream(made[2].uri)
    count = stream._packed["problems"].windows
    first, second = (stream._shuffled("problems", np.arange(count) + epoch * count) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(count))
    assert first.tolist() != second.tolist()


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
    assert len(web) < made[2].available()["web"].tokens and set(web) == {1}


def test_a_following_mixture_goes_on_where_the_last_one_stopped(made):
    """Two runs one after the other, the second with other weights: no token twice before all were read once."""
    first = TokenStream(made[2].uri, step=30)
    read = first.windows_read()
    weighed = zip(made[0].sources, (1, 3), strict=True)
    sources = [source.model_copy(update={"consumed": read[source.name], "weight": weight}) for source, weight in weighed]
    changed = made[0].model_copy(update={"sources": tuple(sources), "phases": (), "tokens": 4000})
    second = TokenStream(made[2].uri, mixture=changed)
    total = Counter()
    for stream, steps in ((first, 30), (second, second.steps)):
        for step in range(steps):
            total += tokens_of(stream.batch(step))
    for source, name in enumerate(first.sources):
        counts = [n for (s, *_), n in total.items() if s == source]
        counts += [0] * (made[2].available()[name].tokens - len(counts))
        assert max(counts) - min(counts) <= 1
    assert sum(total.values()) == sum(first.ledger(30).values()) + sum(second.ledger(second.steps).values())
    greedy = [source.model_copy(update={"consumed": 10**4}) for source in sources]
    with pytest.raises(UserError, match="read before"):
        TokenStream(made[2].uri, mixture=changed.model_copy(update={"sources": tuple(greedy)}))


def test_opening_reads_no_tokens(made):
    shards = ShardSet.open(made[2].uri)
    shards.array, opened = (lambda name, dtype, original=shards.array: opened.append(name) or original(name, dtype)), []
    TokenStream(shards)
    assert opened and not [name for name in opened if name.endswith((".bin", ".mask", ".idx"))]
