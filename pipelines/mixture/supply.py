"""What a source holds, as the planner asks for it: from numbers, or from shards on disk (`pipelines.loader.supply`)."""

from collections.abc import Mapping
from typing import Protocol

from pipelines.mixture.plan import Available, Lane
from pipelines.packing import Packing


class Supply(Protocol):
    """Where the planner asks."""

    def whole(self, source: str, length: int, packing: Packing) -> Available:
        """All training documents of a source in windows of `length`; no windows if there is no such source."""

    def rest(self, lane: Lane, read: int, length: int, packing: Packing) -> Available | None:
        """What the first `read` sequences of a lane leave unread of the pass they end in, in windows of `length`; None if nothing."""

    def earlier(self, lane: Lane, read: int) -> int:
        """Tokens in the first `read` sequences of a lane."""


class Estimate:
    """A supply known by its numbers: tokens in full windows, or tokens and windows of one length, scaled to others."""

    def __init__(self, held: Mapping[str, Available | int], length: int):
        self.held, self.length = held, length

    def whole(self, source: str, length: int, packing: Packing) -> Available:
        entry = self.held.get(source, 0)
        if isinstance(entry, int):
            return Available(tokens=entry, windows=-(-entry // length))
        if length == self.length:
            return entry
        return Available(tokens=entry.tokens, windows=-(-entry.windows * self.length // length))

    def rest(self, lane: Lane, read: int, length: int, packing: Packing) -> Available | None:
        tokens = self._pass(lane, read)
        return Available(tokens=tokens, windows=-(-tokens // length)) if tokens else None

    def earlier(self, lane: Lane, read: int) -> int:
        rest = lane.rest
        if rest is not None and read <= rest.windows:
            return rest.tokens * read // rest.windows
        done = rest.windows if rest else 0
        return (rest.tokens if rest else 0) + lane.whole.tokens * (read - done) // lane.whole.windows

    def _pass(self, lane: Lane, read: int) -> int:
        """Tokens that the pass after `read` sequences has left."""
        if lane.rest is not None and read < lane.rest.windows:
            return lane.rest.tokens - self.earlier(lane, read)
        within = (read - (lane.rest.windows if lane.rest else 0)) % lane.whole.windows
        return lane.whole.tokens - lane.whole.tokens * within // lane.whole.windows if within else 0
