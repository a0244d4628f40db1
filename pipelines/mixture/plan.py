"""What will be read, to the sequence: the plan of a mixture.

A source is read in *lanes*, one after the other. A lane is the source's documents in windows of one length: first what earlier lanes
have left unread of their last pass (`rest`), then everything, pass after pass. A mixture of one window length has one lane a
source; a long-context phase opens another, and so does a new plan that goes on after an old one with another length or packing.
Every share of a phase says which sequences of which lane it reads, so the plan alone is the order of training.
"""

from typing import Any

from pipelines.packing import Packing
from pipelines.recipe import Recipe, digest_of


class Available(Recipe):
    """`windows` sequences that hold `tokens` tokens together; `index` names the window index (empty: computed from the shards)."""

    tokens: int
    windows: int
    index: str = ""
    sha256: str = ""


class Lane(Recipe):
    """A source in windows of one length. `key` and `seed` name its shuffle."""

    source: str
    sequence_length: int
    packing: Packing
    seed: int
    key: int
    """how many lanes the source was read in before"""
    before: float
    """epochs of the source read in those"""
    rest: Available | None
    whole: Available
    consumed: int
    """sequences of this lane read by earlier plans"""

    def passes(self) -> list[Available]:
        return [self.whole] if self.rest is None else [self.rest, self.whole]


class Share(Recipe):
    """A source's part in a phase, in whole sequences. `epochs` counts this phase only."""

    source: str
    asked: int
    """Tokens the weights ask for."""
    tokens: int
    """Tokens the sequences hold on average."""
    sequences: int
    epochs: float
    lane: int
    """number of the lane in the plan"""
    first: int
    """sequence of the lane it begins with"""


class PlannedPhase(Recipe):
    first_step: int
    steps: int
    sequence_length: int
    batch_size: int
    shares: tuple[Share, ...]


class MixturePlan(Recipe):
    """What will be read, to the sequence. Its digest is the identity of the order of training."""

    name: str
    seed: int
    sequence_length: int
    batch_size: int
    packing: Packing
    tree: tuple[tuple[int, str, float], ...]
    """the mixture as (depth, name, share of the whole) in order; empty where nothing is nested"""
    available: dict[str, Available]
    """per source, all of it in windows of `sequence_length`"""
    lanes: tuple[Lane, ...]
    phases: tuple[PlannedPhase, ...]

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        return sum(share.tokens for phase in self.phases for share in phase.shares)

    @property
    def digest(self) -> str:
        return digest_of(self)

    def epochs(self, source: str) -> float:
        """How often the source is gone through, over all phases of this plan."""
        return sum(share.epochs for phase in self.phases for share in phase.shares if share.source == source)

    def __rich__(self) -> Any:
        from pipelines.mixture.show import tree_of

        return tree_of(self)
