"""TokenStream: batches of tokens in an order that is a function of (seed, plan, step) and of nothing else.

There is no buffer, no worker state and no epoch cursor that could be lost: step k is computed, not reached. So a run may stop
anywhere and go on with any number of ranks, and the state worth saving is one integer, the plan's digest to check it against,
and the ledger of tokens read per source for people to look at.

Opening reads a manifest and maps files: O(sources x shards), whatever they hold. Ranks take contiguous slices of the same
global batch: for any world size the union is the same.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from kernels.feistel import Permutation
from pipelines.errors import UserError
from pipelines.loader.batch import POSITION, ROW, SOURCE, SPAN_DOCUMENT, SPAN_LENGTH, SPAN_OFFSET, SPAN_SHARD, Batch, Span, assemble
from pipelines.loader.lanes import LaneReader
from pipelines.loader.supply import lane_reader, plan_over
from pipelines.loader.validation import ValidationOrder
from pipelines.mixture.plan import MixturePlan, PlannedPhase, Share
from pipelines.mixture.recipe import Mixture
from pipelines.mixture.timeline import drawn_in
from pipelines.packing import LENGTH, SHARD, WINDOW
from pipelines.recipe import digest_of
from pipelines.shardset import ShardSet

_EXACT = 1 << 20  # windows a saved ledger is counted again over when it is loaded; beyond, it is believed if it can be true


class TokenStream:
    """Batches of a shard set, addressed by step.

    Args:
        shards: URI of a shard set, or an open one.
        rank, world: this process takes rows [B * rank // world, B * (rank + 1) // world) of every batch of B.
        step: where iteration begins.
        split: "train" follows the plan; "validation" reads every validation window once, in order (`sources` narrows it).
        mixture: another mixture of the same sources to plan these shards by (weights, tokens, shapes, phases, seed, packing).
        plan: a plan over these shards, in place of theirs.

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
        plan: MixturePlan | None = None,
        sources: list[str] | None = None,
        batch_size: int | None = None,
    ):
        self.shards = shards if isinstance(shards, ShardSet) else ShardSet.open(shards)
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} is not within a world of {world}")
        if batch_size is not None and split == "train":
            raise UserError("the batch size of training belongs to the mixture's plan; pass `mixture` to plan anew")
        self.rank, self.world, self.split = rank, world, split
        self.plan = plan or (plan_over(self.shards, mixture) if mixture is not None else self.shards.plan)
        self.sources = self._chosen(sources)
        self.length, self.batch_size = self.plan.sequence_length, batch_size or self.plan.batch_size  # a phase may have its own
        self._shards = [self.shards.shards(name, split) for name in self.sources]
        counts = [[shard.documents for shard in held] for held in self._shards]
        before = np.cumsum([0, *(count for held in counts for count in held)])
        self._numbers = np.split(before[:-1], np.cumsum([len(held) for held in counts])[:-1]) if counts else []
        self._before = before
        self._lanes: dict[int, LaneReader] = {}
        self._drawn: tuple[int, list[int]] = (-1, [])
        self._known: tuple[int, dict[str, int]] = (0, dict.fromkeys(self.sources, 0))
        self._validation = ValidationOrder(self._shards, self.plan, self.batch_size) if split == "validation" else None
        if self._validation is not None and not self._validation.windows:
            raise UserError(f"{self.shards.uri}: no validation documents; set validation.fraction in the mixture")
        self.step = 0
        self.seek(step)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self._validation.steps if self._validation else self.plan.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the present step to the last; a batch counts as read once it is handed out."""
        while self.step < self.steps:
            self.step += 1
            yield self.batch(self.step - 1)

    def __getitem__(self, step: int) -> Batch:
        return self.batch(step)

    def seek(self, step: int) -> None:
        """Let iteration go on at `step`."""
        if not 0 <= step <= self.steps:
            raise UserError(f"step {step} is outside this stream of {self.steps} steps")
        self.step = step

    def batch(self, step: int) -> Batch:
        """This rank's rows of the batch of a step."""
        rows = self._rows(step)
        rows = rows[len(rows) * self.rank // self.world : len(rows) * (self.rank + 1) // self.world]
        spans = self._spans(step, rows)
        return assemble(spans, len(rows), self._length(step), self.shards.eos, lambda source, shard: self._shards[source][shard], self._number)

    def provenance(self, step: int, sample: int) -> list[Span]:
        """Which documents lie in row `sample` of the global batch of a step, in reading order.

        Raises:
            UserError: the step or the row does not exist.
        """
        rows = self._rows(step)
        if not 0 <= sample < len(rows):
            raise UserError(f"sample {sample} is outside step {step}'s batch of {len(rows)} sequences")
        return self.spans(self._spans(step, rows[sample : sample + 1]))

    def spans(self, spans: np.ndarray) -> list[Span]:
        """Names for the rows of `Batch.spans`."""
        named = []
        for row in spans.tolist():
            shard = self._shards[row[SOURCE]][row[SPAN_SHARD]]
            place = {"doc_offset": row[SPAN_OFFSET], "length": row[SPAN_LENGTH], "position": row[POSITION]}
            named.append(Span(shard.source, shard.ids[row[SPAN_DOCUMENT]], **place, shard=shard.prefix, document=row[SPAN_DOCUMENT]))
        return named

    def names(self, document_ids: np.ndarray) -> list[str | None]:
        """The documents' own ids, for `Batch.document_ids`; None for padding."""
        flat = [shard for held in self._shards for shard in held]
        owners = np.searchsorted(self._before, document_ids, side="right") - 1
        return [None if number < 0 else flat[owner].ids[number - int(self._before[owner])]
                for number, owner in zip(document_ids.tolist(), owners.tolist(), strict=True)]

    def places(self, source: str, shard: int, document: int) -> list[tuple[int, int, int]]:
        """Where training reads a document: (epoch, step, row of the global batch), by inverting the shuffle."""
        assert self._validation is None, "places are of the training split"
        found = []
        for phase in self.plan.phases:
            for number, share in enumerate(phase.shares):
                if share.source != source:
                    continue
                for epoch, sequence in self._lane(share.lane).sequences_of(shard, document, share.first, share.first + share.sequences):
                    drawn = sequence - share.first
                    steps = range(phase.first_step, phase.first_step + phase.steps)
                    step = phase.first_step + bisect_right(steps, drawn, key=lambda step: drawn_in(phase, step + 1)[number])
                    before, after = drawn_in(phase, step), drawn_in(phase, step + 1)
                    place = sum(after[:number]) - sum(before[:number]) + drawn - before[number]
                    found.append((epoch, step, self._mixed(phase, step).inverse(place)))
        return sorted(found)

    def ledger(self, step: int | None = None) -> dict[str, int]:
        """Tokens read per source before `step` (default: the present one), over all ranks, padding not counted."""
        step = self.step if step is None else step
        if self._validation is not None:
            return dict(zip(self.sources, self._validation.ledger(step), strict=True))
        since, read = self._known if self._known[0] <= step else (0, dict.fromkeys(self.sources, 0))
        read = dict(read)
        for share, first, last in self._shares_between(since, step):
            read[share.source] += self._lane(share.lane).tokens(first, last)
        self._known = step, dict(read)
        return read

    def state_dict(self) -> dict[str, Any]:
        """One integer, the identity of the plan and of the data, and the ledger."""
        return {"step": self.step, "plan": self.plan.digest, "data": self._identity(), "ledger": self.ledger()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state says; rank and world may differ from the run that saved it.

        Raises:
            UserError: the state belongs to another plan or to other shards.
        """
        for key, here in (("plan", self.plan.digest), ("data", self._identity())):
            if state[key] != here:
                what = "another plan" if key == "plan" else "other shards or another split"
                raise UserError(f"{self.shards.uri}: the saved state belongs to {what} ({state[key][:12]}, this is {here[:12]})")
        self.seek(state["step"])
        ledger = dict(state["ledger"])
        if not self._can_be(ledger):
            raise UserError(f"{self.shards.uri}: the saved ledger {ledger} is not what step {self.step} of this plan has read")
        self._known = self.step, ledger

    def _can_be(self, ledger: dict[str, int]) -> bool:
        """Counted anew where that is quick, else between one token and a full window a sequence."""
        reads = [] if self._validation else list(self._shares_between(0, self.step))
        if sum(last - first for share, first, last in reads if any(entry.index for entry in self.plan.lanes[share.lane].passes())) <= _EXACT:
            self._known = (0, dict.fromkeys(self.sources, 0))
            return ledger == self.ledger()
        most = dict.fromkeys(self.sources, 0)
        least = dict(most)
        for share, first, last in reads:
            least[share.source] += last - first
            most[share.source] += (last - first) * self.plan.lanes[share.lane].sequence_length
        return ledger.keys() == most.keys() and all(least[name] <= tokens <= most[name] for name, tokens in ledger.items())

    def _shares_between(self, since: int, step: int) -> Iterator[tuple[Share, int, int]]:
        """(share, first, last): the sequences of lanes that are read in steps [since, step)."""
        for phase in self.plan.phases:
            for share, first, last in zip(phase.shares, drawn_in(phase, since), drawn_in(phase, step), strict=True):
                if first < last:
                    yield share, share.first + first, share.first + last

    def _identity(self) -> str:
        return digest_of([self.shards.manifest["dataset_digest"], self.split, self.sources, self.batch_size])

    def _chosen(self, sources: list[str] | None) -> list[str]:
        if sources is None:
            return self.shards.sources
        if self.split == "train":
            raise UserError("sources can only be chosen for the validation split; a training mixture weighs them")
        if unknown := sorted(set(sources) - set(self.shards.sources)):
            raise UserError(f"no source {unknown[0]!r} in {self.shards.uri}; there are {', '.join(self.shards.sources)}")
        return list(sources)

    def _phase(self, step: int) -> PlannedPhase:
        return self.plan.phases[bisect_right(self.plan.phases, step, key=lambda phase: phase.first_step) - 1]

    def _length(self, step: int) -> int:
        return self.plan.sequence_length if self._validation else self._phase(step).sequence_length

    def _lane(self, number: int) -> LaneReader:
        if number not in self._lanes:
            self._lanes[number] = lane_reader(self.shards, self.plan.lanes[number])
        return self._lanes[number]

    def _rows(self, step: int) -> np.ndarray:
        """The global batch: int64 [B, 2] of (share of the phase, sequence of its lane)."""
        if not 0 <= step < self.steps:
            raise UserError(f"step {step} is outside this stream of {self.steps} steps")
        if self._validation is not None:
            return self._validation.rows(step)
        phase = self._phase(step)
        rows = np.empty((phase.batch_size, 2), np.int64)
        at = 0
        known, drawn = self._drawn  # where the last step ended, which is mostly where this one begins
        before = drawn if known == step > phase.first_step else drawn_in(phase, step)
        after = drawn_in(phase, step + 1)
        self._drawn = step + 1, after
        for number, (share, first, last) in enumerate(zip(phase.shares, before, after, strict=True)):
            rows[at : at + last - first, 0] = number
            rows[at : at + last - first, 1] = np.arange(share.first + first, share.first + last)
            at += last - first
        return rows[self._mixed(phase, step).take(np.arange(phase.batch_size))]

    def _mixed(self, phase: PlannedPhase, step: int) -> Permutation:
        """The order of rows within a batch."""
        return Permutation(phase.batch_size, self.plan.seed, "rows", step)

    def _spans(self, step: int, rows: np.ndarray) -> np.ndarray:
        """The pieces of rows as int64 [pieces, 7], by row and position."""
        found = [np.zeros((0, 7), np.int64)]
        for number in np.unique(rows[:, 0]).tolist():
            places = np.flatnonzero(rows[:, 0] == number)
            if self._validation is not None:
                source, pieces = number, self._validation.pieces(number, rows[places, 1])
            else:
                share = self._phase(step).shares[number]
                source, pieces = self.sources.index(share.source), self._lane(share.lane).pieces(rows[places, 1])
            before = np.cumsum(pieces[:, LENGTH]) - pieces[:, LENGTH]
            firsts = np.searchsorted(pieces[:, WINDOW], np.arange(len(places)))
            spans = np.empty((len(pieces), 7), np.int64)
            spans[:, ROW], spans[:, POSITION] = places[pieces[:, WINDOW]], before - before[firsts][pieces[:, WINDOW]]
            spans[:, SPAN_LENGTH], spans[:, SOURCE], spans[:, SPAN_SHARD:] = pieces[:, LENGTH], source, pieces[:, SHARD:LENGTH]
            found.append(spans)
        spans = np.concatenate(found)
        return spans[np.argsort(spans[:, ROW], kind="stable")]

    def _number(self, sources: np.ndarray, shards: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Documents' numbers in the shard set."""
        numbers = np.empty_like(documents)
        for source in np.unique(sources).tolist():
            here = sources == source
            numbers[here] = self._numbers[source][shards[here]] + documents[here]
        return numbers
