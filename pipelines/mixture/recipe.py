"""What a person writes: a mixture of sources, or of mixtures of sources, in YAML.

Weights are weights of *tokens*. A source that has `sources` of its own is a mixture inside a mixture: its weight is shared out among
them and weights multiply. `Mixture.leaves()` is that product, and all that the planner sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from filters.licence import CLASSES
from pipelines.packing import Packing
from pipelines.recipe import Recipe

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # it becomes part of file names


class FillInMiddle(Recipe):
    """Fill-in-the-middle, done when documents are tokenized (`pipelines.fill_in_middle`)."""

    rate: float = Field(0.5, ge=0, le=1, description="share of the documents that are cut into prefix, middle and suffix")
    spm: float = Field(0.5, ge=0, le=1, description="of those, the share in suffix-prefix-middle order; the others are prefix-suffix-middle")
    prefix: str = Field("<SPECIAL_3>", description="special token before the prefix")
    suffix: str = Field("<SPECIAL_4>", description="special token before the suffix")
    middle: str = Field("<SPECIAL_5>", description="special token before the middle")


class Source(Recipe):
    """One dataset's part in a mixture, or a mixture inside it."""

    name: Annotated[str, Field(pattern=NAME, description="what plan, ledger and shards call it")]
    dataset: str = Field("", description="URI of a closed dataset; a relative path is seen from the mixture file's folder")
    weight: float = Field(ge=0, description="share of the tokens, relative to its neighbours")
    format: Literal["text", "chat"] = Field("text", description="text: the column `text`; chat: the column `messages` through the chat template")
    loss: Literal["all", "assistant"] = Field("assistant", description="chat: which tokens count in the loss")
    where: str | None = Field(None, description="which rows: an SQL condition over the dataset's columns, e.g. `cluster_size < 5`")
    language: tuple[str, ...] = Field((), description="which rows: only these values of the column `language`")
    quality: tuple[int, int] | None = Field(None, description="which rows: first and last `quality_bucket`, both included")
    licence: tuple[str, ...] = Field((), description=f"which rows: only licences (column `license`) of these classes: {', '.join(CLASSES)}")
    max_repetition: float = Field(1.0, gt=0, description="how many times the source may be gone through")
    rehydrate: bool = Field(False, description="write a document as often as FineWeb-2's table says for its `cluster_size`")
    fim: FillInMiddle | None = Field(None, description="text: fill-in-the-middle with these rates and tokens")
    sources: tuple["Source", ...] = Field((), description="instead of a dataset: sources that share this one's weight")
    mixture: str | None = Field(None, description="instead of a dataset: a mixture file whose sources share this one's weight")

    @model_validator(mode="after")
    def _is_one_thing(self) -> "Source":
        if sum(map(bool, (self.dataset, self.sources, self.mixture))) != 1:
            raise ValueError(f"source {self.name!r} needs one of dataset, sources and mixture")
        if not self.dataset and (self.where or self.language or self.quality or self.licence or self.fim):
            raise ValueError(f"source {self.name!r} is a mixture: which rows and fill-in-the-middle belong to its sources")
        if unknown := set(self.licence) - set(CLASSES):
            raise ValueError(f"source {self.name!r}: no licence class {min(unknown)!r}; there are {', '.join(CLASSES)}")
        if self.fim and self.format != "text":
            raise ValueError(f"source {self.name!r}: fill-in-the-middle is for text, not for conversations")
        return self


class Validation(Recipe):
    """Documents kept out of training, chosen by a hash of their id: the same ones in every mixture."""

    fraction: float = Field(0.0, ge=0, lt=1, description="share of the documents")


class Phase(Recipe):
    """A stretch of training with its own weights, and its own shape if it says so."""

    tokens: int = Field(gt=0, description="how long it lasts")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(description="per source (or group of sources); those not named have weight 0")
    sequence_length: int | None = Field(None, gt=1, description="window of this phase, e.g. a longer context; default: the mixture's")
    batch_size: int | None = Field(None, gt=0, description="sequences a step in this phase; default: the mixture's")


class After(Recipe):
    """An earlier plan over the same shards and the step it stopped at: what was read then is not read again before all was."""

    plan: str = Field(min_length=6, description="the earlier plan's digest, or its beginning (`plan` of a loader's state)")
    step: int = Field(ge=0, description="steps of it that were trained")


@dataclass(frozen=True)
class Leaf:
    """A dataset with its share of the whole; `groups` are the mixtures it lies in, outermost first."""

    source: Source
    weight: Fraction
    groups: tuple[str, ...]


class Mixture(Recipe):
    """A recipe of sources. `tokens: all` takes as many as the weights and repetitions allow."""

    name: str = Field("mixture", description="what the plan is called")
    tokens: Annotated[int, Field(gt=0)] | Literal["all"] = Field("all", description="how long training lasts")
    sequence_length: int = Field(1024, gt=1, description="tokens a window")
    batch_size: int = Field(32, gt=0, description="sequences a step, over all ranks")
    seed: int = Field(0, description="of the order")
    packing: Packing = Field("concat", description="concat: cut the stream; best_fit: cut no document that fits; pad: a window a document")
    rounding: float = Field(0.1, gt=0, description="by how much, relatively, a source's tokens may miss what was asked because sequences are whole")
    sources: tuple[Source, ...] = Field(min_length=1, description="what is mixed")
    validation: Validation = Field(Validation(), description="documents kept out of training")
    phases: tuple[Phase, ...] = Field((), description="without phases there is one, with the sources' own weights; with them, `tokens` is their sum")
    after: After | None = Field(None, description="go on after an earlier plan, with unread documents first")

    @model_validator(mode="after")
    def _adds_up(self) -> "Mixture":
        leaves = [leaf.source.name for leaf in self.leaves()]
        for name in leaves:
            if leaves.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}")
        names = set(leaves) | {group for leaf in self.leaves() for group in leaf.groups}
        for phase in self.phases:
            if unknown := sorted(set(phase.weights) - names):
                raise ValueError(f"a phase weighs the source {unknown[0]!r}, which the mixture does not have")
        if self.phases and self.tokens not in ("all", sum(phase.tokens for phase in self.phases)):
            raise ValueError(f"tokens {self.tokens} is not the sum of the phases' tokens, {sum(p.tokens for p in self.phases)}")
        for weights in self.weights():
            if not sum(weights.values()):
                raise ValueError("no source of a phase has a weight above 0")
        return self

    def leaves(self) -> list[Leaf]:
        """The datasets, in order, with their shares of the tokens multiplied through."""
        return list(_leaves(self.sources, Fraction(1), ()))

    def weights(self) -> list[dict[str, Fraction]]:
        """Per phase, each dataset's weight (not normalised). A group's weight is shared as its sources' own weights say."""
        leaves = self.leaves()
        if not self.phases:
            return [{leaf.source.name: leaf.weight for leaf in leaves}]
        return [{leaf.source.name: _in_phase(leaf, leaves, phase.weights) for leaf in leaves} for phase in self.phases]

    def datasets(self) -> list[Source]:
        """The sources that are datasets, in order."""
        return [leaf.source for leaf in self.leaves()]

    def source(self, name: str) -> Source:
        return next(source for source in self.datasets() if source.name == name)

    def flat(self) -> "Mixture":
        """The same mixture without groups: every dataset with the product of its weights."""
        if not any(leaf.groups for leaf in self.leaves()):
            return self
        sources = tuple(leaf.source.model_copy(update={"weight": float(leaf.weight)}) for leaf in self.leaves())
        weights = [{name: float(weight) for name, weight in weights.items() if weight} for weights in self.weights()]
        phases = tuple(phase.model_copy(update={"weights": each}) for phase, each in zip(self.phases, weights, strict=bool(self.phases)))
        return self.model_copy(update={"sources": sources, "phases": phases})


def _leaves(sources: tuple[Source, ...], share: Fraction, groups: tuple[str, ...]) -> Iterator[Leaf]:
    total = sum(Fraction(source.weight) for source in sources)
    for source in sources:
        weight = share * Fraction(source.weight) / total if total else Fraction(0)
        if source.sources:
            yield from _leaves(source.sources, weight, (*groups, source.name))
        else:
            yield Leaf(source, weight, groups)


def _in_phase(leaf: Leaf, leaves: list[Leaf], weights: dict[str, float]) -> Fraction:
    """The nearest name that the phase weighs: the source's own, else the innermost group's."""
    if leaf.source.name in weights:
        return Fraction(weights[leaf.source.name])
    for group in reversed(leaf.groups):
        if group in weights:
            # Sources of the group that the phase weighs by name, or by a group further in, take no part of the group's weight.
            inside = [other for other in leaves if group in other.groups and other.source.name not in weights
                      and not any(inner in weights for inner in other.groups[other.groups.index(group) + 1 :])]
            total = sum(other.weight for other in inside)
            return Fraction(weights[group]) * leaf.weight / total if total else Fraction(0)
    return Fraction(0)
