"""TokenStream: batches of tokens in an order that is a function of (seed, plan, step) and of nothing else.

There is no buffer, no worker state and no epoch cursor that could be lost: step k is computed, not reached. So a run may stop
anywhere and go on with any number of ranks, and the state worth saving is one integer, the plan's digest to check it against,
and the ledger of tokens read per source for people to look at.

Order. A phase of the plan has n_s sequences of source s. They are laid out on a line of time, the i-th at (2i + 1) / (2 n_s),
and read from left to right, so every prefix holds every source's share to within a sequence or two, and the whole phase
exactly. Which window the i-th sequence is, is a Feistel permutation a source and epoch; rows within a batch are shuffled too.

Ranks take contiguous slices of the same global batch: for any world size the union is the same.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kernels.feistel import Permutation
from pipelines.errors import UserError
from pipelines.mixture import Mixture, MixturePlan, PlannedPhase, plan
from pipelines.packing import DOCUMENT, LENGTH, OFFSET, SHARD, WINDOW, BestFit, Concat
from pipelines.recipe import digest_of
from pipelines.shardset import ShardSet

# Columns of Batch.spans.
ROW, POSITION, SPAN_LENGTH, SOURCE, SPAN_SHARD, SPAN_DOCUMENT, SPAN_OFFSET = range(7)
_TIME = 40  # bits of the time line


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. B sequences of T tokens; all arrays are numpy and own their memory.

    `seq_idx` numbers the documents within a row from 0; padding after the last document has the next number. Padding has
    token </s>, label 0 and loss_mask 0. `cu_seqlens` are the boundaries of all documents (and paddings) of the flattened batch.
    """

    input_ids: np.ndarray
    """int64 [B, T]"""
    labels: np.ndarray
    """int64 [B, T], the next token of the same document"""
    loss_mask: np.ndarray
    """int64 [B, T], 0 at a document's last token, at padding, and before tokens that are not to be learnt (chat)"""
    seq_idx: np.ndarray
    """int32 [B, T]"""
    position_ids: np.ndarray
    """int32 [B, T], counted from the beginning of the piece of the document"""
    cu_seqlens: np.ndarray
    """int32 [pieces + 1]"""
    spans: np.ndarray
    """int64 [pieces, 7]: ROW, POSITION, SPAN_LENGTH, SOURCE, SPAN_SHARD, SPAN_DOCUMENT, SPAN_OFFSET; padding has no span"""

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.spans[:, SPAN_LENGTH].sum())


@dataclass(frozen=True)
class Span:
    """A part of a document in a sequence; offsets and lengths in tokens."""

    source: str
    document_id: str
    doc_offset: int
    length: int
    position: int
    shard: str
    document: int
    """the document's index in the shard"""


class TokenStream:
    """Batches of a shard set, addressed by step.

    Args:
        shards: URI of a shard set, or an open one.
        rank, world: this process takes rows [B * rank // world, B * (rank + 1) // world) of every batch of B.
        step: where iteration begins.
        split: "train" follows the plan; "validation" reads every validation window once, in order (`sources` narrows it).
        mixture: another mixture of the same sources to plan these shards by (weights, tokens, batch size, phases, seed).

    Raises:
        UserError: no shards, no validation documents, a plan that does not add up.
    """

    def __init__(
        self,
        shards: str | ShardSet,
        *,
        rank: int = 0,
        world: int = 1,
        step: int = 0,
        split: Literal["train", "validation"] = "train",
        mixture: Mixture | None = None,
        sources: list[str] | None = None,
        batch_size: int | None = None,
    ):
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} is not within a world of {world}")
        if batch_size is not None and split == "train":
            raise UserError("the batch size of training belongs to the mixture's plan; pass `mixture` to plan anew")
        self.rank, self.world, self.split = rank, world, split
        self.plan: MixturePlan = self.shards.plan
        if mixture is not None:
            self.plan = plan(mixture, self.shards.available(mixture.sequence_length, mixture.packing))
        self.sources = self._chosen(sources)
        self.length = self.plan.sequence_length
        self._shards = {name: self.shards.shards(name, split) for name in self.sources}
        self._packed: dict[str, Concat | BestFit] = {
            name: self.shards.packed(shards, self.length, self.plan.packing) for name, shards in self._shards.items()
        }
        self.batch_size = batch_size or self.plan.batch_size
        self._order = _Order(self.plan, self.sources) if split == "train" else None
        self._windows = np.cumsum([self._packed[name].windows for name in self.sources])
        if split == "validation" and not self._windows[-1]:
            raise UserError(f"{self.shards.uri}: no validation documents; set validation.fraction in the mixture")
        self.step = 0
        self.seek(step)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.plan.steps if self._order else -(-int(self._windows[-1]) // self.batch_size)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present step to the last; a batch counts as read once it is handed out."""
        while self.step < self.steps:
            self.step += 1
            yield self.batch(self.step - 1)

    def seek(self, step: int) -> None:
        """Let iteration go on at `step`."""
        if not 0 <= step <= self.steps:
            raise UserError(f"step {step} is outside this stream of {self.steps} steps")
        self.step = step

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of a step."""
        return self._assemble(self._rows(step)[self._slice(step)])

    def provenance(self, step: int, sample: int) -> list[Span]:
        """Which documents lie in row `sample` of the global batch of a step, in reading order.

        Raises:
            UserError: the step or the row does not exist.
        """
        rows = self._rows(step)
        if not 0 <= sample < len(rows):
            raise UserError(f"sample {sample} is outside step {step}'s batch of {len(rows)} sequences")
        return self.spans(self._spans(rows[sample : sample + 1]))

    def spans(self, spans: np.ndarray) -> list[Span]:
        """Names for the rows of `Batch.spans`."""
        named = []
        for row in spans.tolist():
            shard = self._shards[self.sources[row[SOURCE]]][row[SPAN_SHARD]]
            place = {"doc_offset": row[SPAN_OFFSET], "length": row[SPAN_LENGTH], "position": row[POSITION]}
            named.append(Span(shard.source, shard.ids[row[SPAN_DOCUMENT]], **place, shard=shard.prefix, document=row[SPAN_DOCUMENT]))
        return named

    def places(self, source: str, shard: int, document: int) -> list[tuple[int, int, int]]:
        """Where training reads a document: (epoch, step, row of the global batch), by inverting the shuffle."""
        assert self._order is not None, "places are of the training split"
        number, packed = self.sources.index(source), self._packed[source]
        total = self._order.drawn(self.steps)[number]
        found = []
        earlier = self.plan.consumed[source]
        for window in packed.windows_of(shard, document):
            for epoch in range(earlier // packed.windows, -(-(earlier + total) // packed.windows)):
                sequence = epoch * packed.windows + self._permutation(source, epoch).inverse(window) - earlier
                if 0 <= sequence < total:
                    step = bisect_right(range(self.steps), sequence, key=lambda step: self._order.drawn(step + 1)[number])
                    before, after = self._order.drawn(step), self._order.drawn(step + 1)
                    place = sum(after[:number]) - sum(before[:number]) + sequence - before[number]
                    found.append((epoch, step, self._mixed(step).inverse(place)))
        return sorted(found)

    def ledger(self, step: int | None = None) -> dict[str, int]:
        """Tokens read per source before `step` (default: the present one), over all ranks, padding not counted."""
        step = self.step if step is None else step
        if self._order is None:
            upto = np.minimum(step * self.batch_size, self._windows)
            counts = np.diff(upto, prepend=0)
            return {name: int(self._packed[name].filled(np.arange(count)).sum()) for name, count in zip(self.sources, counts.tolist(), strict=True)}
        upto = {name: count + self.plan.consumed[name] for name, count in self.windows_read(step).items()}
        return {name: self._tokens_of(name, count) - self._tokens_of(name, self.plan.consumed[name]) for name, count in upto.items()}

    def windows_read(self, step: int | None = None) -> dict[str, int]:
        """Windows of training read per source before `step`: what `consumed` of a following mixture's sources is set to."""
        assert self._order is not None, "windows are counted for the training split"
        return dict(zip(self.sources, self._order.drawn(self.step if step is None else step), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """One integer, the identity of the plan, and the ledger."""
        return {"step": self.step, "plan": self._identity(), "ledger": self.ledger()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state says; rank and world may differ from the run that saved it.

        Raises:
            UserError: the state belongs to another plan or to other shards.
        """
        if state["plan"] != self._identity():
            raise UserError(f"{self.shards.uri}: the saved state belongs to another plan ({state['plan'][:12]}, this is {self._identity()[:12]})")
        self.seek(state["step"])
        if state["ledger"] != self.ledger():
            raise UserError(f"{self.shards.uri}: the saved ledger {state['ledger']} is not what step {self.step} of this plan has read")

    def _identity(self) -> str:
        return digest_of([self.plan.digest, self.shards.manifest["dataset_digest"], self.split, self.sources, self.batch_size])

    def _chosen(self, sources: list[str] | None) -> list[str]:
        if sources is None:
            return self.shards.sources
        if self.split == "train":
            raise UserError("sources can only be chosen for the validation split; a training mixture weighs them")
        if unknown := sorted(set(sources) - set(self.shards.sources)):
            raise UserError(f"no source {unknown[0]!r} in {self.shards.uri}; there are {', '.join(self.shards.sources)}")
        return list(sources)

    def _slice(self, step: int) -> slice:
        size = self.batch_size if self._order else min(self.batch_size, int(self._windows[-1]) - step * self.batch_size)
        return slice(size * self.rank // self.world, size * (self.rank + 1) // self.world)

    def _rows(self, step: int) -> np.ndarray:
        """The global batch: int64 [B, 2] of (source, window)."""
        if not 0 <= step < self.steps:
            raise UserError(f"step {step} is outside this stream of {self.steps} steps")
        if self._order is None:
            windows = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, int(self._windows[-1])))
            sources = np.searchsorted(self._windows, windows, side="right")
            return np.stack([sources, windows - np.concatenate(([0], self._windows[:-1]))[sources]], axis=1)
        rows = []
        before, after = self._order.drawn(step), self._order.drawn(step + 1)
        for source, (name, first, last) in enumerate(zip(self.sources, before, after, strict=True)):
            if first < last:
                windows = self._shuffled(name, np.arange(first, last) + self.plan.consumed[name])
                rows.append(np.stack([np.full_like(windows, source), windows], axis=1))
        return np.concatenate(rows)[self._mixed(step).take(np.arange(self.batch_size))]

    def _mixed(self, step: int) -> Permutation:
        """The order of rows within a batch."""
        return Permutation(self.batch_size, self.plan.seed, "rows", step)

    def _shuffled(self, name: str, sequences: np.ndarray) -> np.ndarray:
        """The windows that a source's n-th sequences are, epoch after epoch."""
        count = self._packed[name].windows
        windows = np.empty_like(sequences)
        for epoch in np.unique(sequences // count).tolist():
            here = sequences // count == epoch
            windows[here] = self._permutation(name, epoch).take(sequences[here] - epoch * count)
        return windows

    def _permutation(self, name: str, epoch: int) -> Permutation:
        return Permutation(self._packed[name].windows, self.plan.seed, "source", name, epoch)

    def _tokens_of(self, name: str, sequences: int) -> int:
        """Tokens in a source's first sequences."""
        packed = self._packed[name]
        if not sequences:
            return 0
        epochs, rest = divmod(sequences, packed.windows)
        total = epochs * packed.tokens
        if isinstance(packed, Concat):  # only the last window may not be full: O(1)
            last = packed.windows - 1
            total += rest * packed.length
            if rest and self._permutation(name, epochs).inverse(last) < rest:
                total -= packed.length - int(packed.filled(np.array([last]))[0])
            return total
        return total + int(packed.filled(self._permutation(name, epochs).take(np.arange(rest))).sum())

    def _spans(self, rows: np.ndarray) -> np.ndarray:
        """The pieces of (source, window) rows as int64 [pieces, 7], by row and position."""
        found = [np.zeros((0, 7), np.int64)]
        for source in np.unique(rows[:, 0]).tolist():
            places = np.flatnonzero(rows[:, 0] == source)
            pieces = self._packed[self.sources[source]].pieces(rows[places, 1])
            before = np.cumsum(pieces[:, LENGTH]) - pieces[:, LENGTH]
            firsts = np.searchsorted(pieces[:, WINDOW], np.arange(len(places)))
            columns = [places[pieces[:, WINDOW]], before - before[firsts][pieces[:, WINDOW]], pieces[:, LENGTH]]
            columns += [np.full(len(pieces), source), pieces[:, SHARD], pieces[:, DOCUMENT], pieces[:, OFFSET]]
            found.append(np.stack(columns, axis=1))
        spans = np.concatenate(found)
        return spans[np.argsort(spans[:, ROW], kind="stable")]

    def _assemble(self, rows: np.ndarray) -> Batch:
        spans = self._spans(rows)
        size, length = len(rows), self.length
        ids = np.full(size * length, self.shards.eos, np.int64)
        labels, mask = np.zeros(size * length, np.int64), np.zeros(size * length, np.int64)
        lengths, starts = spans[:, SPAN_LENGTH], spans[:, ROW] * length + spans[:, POSITION]
        within = _ranges(lengths)
        places = np.repeat(starts, lengths) + within
        # A shard at a time: all its pieces are gathered from the memory map at once.
        owner = spans[:, SOURCE] * (1 << 32) + spans[:, SPAN_SHARD]
        for key in np.unique(owner).tolist():
            chosen = owner == key
            shard = self._shards[self.sources[key >> 32]][key & 0xFFFFFFFF]
            documents = spans[chosen, SPAN_DOCUMENT]
            document_ends = shard.ends[documents].astype(np.int64)
            document_starts = np.where(documents > 0, shard.ends[np.maximum(documents - 1, 0)], 0).astype(np.int64)
            first = document_starts + spans[chosen, SPAN_OFFSET]
            held = np.repeat(chosen, lengths)
            at, counts = places[held], lengths[chosen]
            tokens = np.repeat(first, counts) + within[held]
            following = np.minimum(tokens + 1, np.repeat(document_ends, counts) - 1)
            ids[at] = shard.tokens[tokens]
            labels[at] = shard.tokens[following]
            learnt = following > tokens
            mask[at] = learnt if shard.mask is None else learnt & (shard.mask[following] == 1)
            labels[at[~learnt]] = 0
        rows = (array.reshape(size, length) for array in (ids, labels, mask))
        return Batch(*rows, *_boundaries(spans, starts, size, length), spans)


class _Order:
    """How many sequences of each source have been drawn at the beginning of a step."""

    def __init__(self, planned: MixturePlan, sources: list[str]):
        self.batch_size = planned.batch_size
        self.phases: list[PlannedPhase] = list(planned.phases)
        self.counts = [[next((s.sequences for s in phase.shares if s.source == name), 0) for name in sources] for phase in self.phases]

    def drawn(self, step: int) -> list[int]:
        """Per source, over all phases."""
        total = [0] * len(self.counts[0])
        for phase, counts in zip(self.phases, self.counts, strict=True):
            within = min(max(step - phase.first_step, 0), phase.steps)
            drawn = drawn_of(counts, within * self.batch_size)
            total = [a + b for a, b in zip(total, drawn, strict=True)]
        return total


def drawn_of(counts: list[int], total: int) -> list[int]:
    """The first `total` of the sequences of sources with `counts` each, spread evenly: exact integers, O(sources).

    The i-th of n sequences lies at time floor((2i + 1) * 2^40 / 2n). A bisection finds the latest time before which not more
    than `total` lie; those at that very time go in the sources' order.
    """
    whole = sum(counts)
    assert 0 <= total <= whole, f"{total} of {whole} sequences"
    if total == whole:
        return list(counts)

    def before(time: int) -> list[int]:
        # (2i + 1) * 2^40 // 2n < time  <=>  (2i + 1) * 2^39 < n * time
        return [(((n * time - 1) >> (_TIME - 1)) + 1) // 2 if n and time else 0 for n in counts]

    low, high = 0, 1 << _TIME
    while high - low > 1:
        middle = (low + high) // 2
        if sum(before(middle)) <= total:
            low = middle
        else:
            high = middle
    drawn, following = before(low), before(high)
    for source, (here, there) in enumerate(zip(drawn, following, strict=True)):
        drawn[source] += min(there - here, total - sum(drawn))
    return drawn


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """0..n-1 for each n of `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _boundaries(spans: np.ndarray, starts: np.ndarray, size: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seq_idx, position_ids, cu_seqlens): pieces begin at `starts`, and padding is a piece of its own."""
    filled = np.zeros(size, np.int64)
    np.add.at(filled, spans[:, ROW], spans[:, SPAN_LENGTH])
    padding = np.flatnonzero(filled < length)
    begins = np.union1d(starts, padding * length + filled[padding])
    edges = np.append(begins, size * length)
    lengths = np.diff(edges)
    rows = begins // length
    number = np.arange(len(begins)) - np.searchsorted(rows, rows)
    seq_idx = np.repeat(number, lengths).astype(np.int32).reshape(size, length)
    return seq_idx, _ranges(lengths).astype(np.int32).reshape(size, length), edges.astype(np.int32)
