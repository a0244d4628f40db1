"""Mixtures: which sources, in which proportion of tokens, for how long; planned to the sequence before anything runs.

A plan that does not add up is found here and not after three days of training: a source that runs out, one that would be
repeated more often than its owner allows, one whose share rounds to nothing. Weights are weights of *tokens*. A source's
windows are not all full (a tail, best-fit packing), so the plan turns tokens into sequences through each source's mean
tokens a window, and what is achieved is what was asked.
"""

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from pipelines.atomic import write_file
from pipelines.errors import UserError
from pipelines.recipe import Recipe, digest_of, load_recipe

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # it becomes part of file names


class Source(Recipe):
    """One dataset's part in a mixture."""

    name: Annotated[str, Field(pattern=NAME)]
    dataset: str
    """URI of a closed dataset; a relative path is resolved against the mixture file's folder."""
    weight: Annotated[float, Field(ge=0)]
    """Share of the tokens, relative to the other sources."""
    format: Literal["text", "chat"] = "text"
    """`text` reads the column `text`; `chat` renders the column `messages` with the chat template."""
    loss: Literal["all", "assistant"] = "assistant"
    """For chat: which tokens count in the loss."""
    where: str | None = None
    """Which rows: an SQL expression over the dataset's columns, e.g. `language = 'en' AND cluster_size < 5`."""
    max_repetition: Annotated[float, Field(gt=0)] = 1.0
    """How many times the source may be gone through."""
    consumed: Annotated[int, Field(ge=0)] = 0
    """Windows that an earlier run over the same documents, window length and seed has read: reading goes on after them."""
    rehydrate: bool = False
    """Write a document as often as FineWeb-2's table says for its `cluster_size` (`pipelines.dedup.rehydrate`)."""


class Validation(Recipe):
    """Documents kept out of training, chosen by a hash of their id: the same ones in every mixture."""

    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Phase(Recipe):
    """A stretch of training with its own weights; sources that are not named have weight 0."""

    tokens: Annotated[int, Field(gt=0)]
    weights: dict[str, Annotated[float, Field(ge=0)]]


class Mixture(Recipe):
    """A recipe of sources. `tokens: all` takes as many as the weights and repetitions allow."""

    name: str = "mixture"
    tokens: Annotated[int, Field(gt=0)] | Literal["all"] = "all"
    sequence_length: Annotated[int, Field(gt=1)] = 1024
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Sequences a step, over all ranks."""
    seed: int = 0
    packing: Literal["concat", "best_fit"] = "concat"
    rounding: Annotated[float, Field(gt=0)] = 0.1
    """By how much, relatively, a source's tokens may differ from what was asked because sequences are whole."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    validation: Validation = Validation()
    phases: tuple[Phase, ...] = ()
    """Without phases there is one, with the sources' own weights. With phases, `tokens` is their sum."""

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called {name!r}")
        return sources

    @model_validator(mode="after")
    def _phases_fit(self) -> "Mixture":
        names = {source.name for source in self.sources}
        for phase in self.phases:
            if unknown := sorted(set(phase.weights) - names):
                raise ValueError(f"a phase weighs the source {unknown[0]!r}, which the mixture does not have")
        if self.phases and self.tokens not in ("all", sum(phase.tokens for phase in self.phases)):
            raise ValueError(f"tokens {self.tokens} is not the sum of the phases' tokens, {sum(p.tokens for p in self.phases)}")
        for weights in self.weights():
            if not sum(weights.values()):
                raise ValueError("no source of a phase has a weight above 0")
        return self

    def weights(self) -> list[dict[str, float]]:
        """Per phase, each source's weight (not normalised)."""
        if not self.phases:
            return [{source.name: source.weight for source in self.sources}]
        return [{source.name: phase.weights.get(source.name, 0.0) for source in self.sources} for phase in self.phases]

    def source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)


class Available(Recipe):
    """What a source holds: `windows` sequences that hold `tokens` tokens together."""

    tokens: int
    windows: int


class Share(Recipe):
    """A source's part in a phase, in whole sequences. `epochs` counts this phase only."""

    source: str
    asked: int
    """Tokens the weights ask for."""
    tokens: int
    """Tokens the sequences hold on average."""
    sequences: int
    epochs: float


class PlannedPhase(Recipe):
    first_step: int
    steps: int
    shares: tuple[Share, ...]


class MixturePlan(Recipe):
    """What will be read, to the sequence. Its digest is the identity of the order of training."""

    name: str
    seed: int
    sequence_length: int
    batch_size: int
    packing: str
    available: dict[str, Available]
    consumed: dict[str, int]
    """Per source, windows read before the first step."""
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
        """How often the source is gone through, over all phases."""
        return sum(share.epochs for phase in self.phases for share in phase.shares if share.source == source)

    def __rich__(self) -> Any:
        from rich.table import Table
        from rich.tree import Tree

        shape = f"{self.steps:,} steps of {self.batch_size} x {self.sequence_length}"
        tree = Tree(f"[bold]{self.name}[/]  {self.tokens:,} tokens = {shape}, {self.packing}, seed {self.seed}")
        for number, phase in enumerate(self.phases, 1):
            total = sum(share.tokens for share in phase.shares)
            asked = sum(share.asked for share in phase.shares)
            table = Table("source", box=None, pad_edge=False, header_style="dim")
            for heading in ("asked", "planned", "tokens", "sequences", "available", "epochs"):
                table.add_column(heading, justify="right")
            for share in phase.shares:
                held = self.available[share.source].tokens
                shares = f"{share.asked / asked:.2%}", f"{share.tokens / total:.2%}"
                table.add_row(share.source, *shares, f"{share.tokens:,}", f"{share.sequences:,}", f"{held:,}", f"{share.epochs:.2f}")
            tree.add(f"phase {number}: steps {phase.first_step:,} to {phase.first_step + phase.steps:,}").add(table)
        return tree


def load_mixture(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Mixture:
    """Read a mixture; relative dataset paths become absolute, seen from the file's folder.

    Raises:
        UserError: the file is missing or does not validate.
    """
    mixture = load_recipe(Mixture, path, overrides)
    folder = Path(path).resolve().parent
    sources = [source.model_copy(update={"dataset": _resolve(source.dataset, folder)}) for source in mixture.sources]
    return mixture.model_copy(update={"sources": tuple(sources)})


def save_mixture(mixture: Mixture, path: str | Path) -> Path:
    """Write a mixture as YAML by rename; dataset paths (absolute, or seen from the working folder) become relative to the file's folder."""
    path = Path(path)
    values = mixture.model_dump(mode="json", exclude_defaults=True)
    for source in values["sources"]:
        if "://" not in source["dataset"]:
            source["dataset"] = os.path.relpath(Path(source["dataset"]).resolve(), path.resolve().parent)
    write_file(str(path), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


def plan(mixture: Mixture, available: Mapping[str, Available | int]) -> MixturePlan:
    """Turn weights into whole sequences, or say why that cannot be.

    Args:
        available: per source what it holds; a bare number means tokens in full windows.

    Raises:
        UserError: a source is empty, falls short, would be repeated more than `max_repetition` allows, or its share
            cannot be met in whole sequences within `mixture.rounding`. Names the source and the numbers.
    """
    held = {
        name: entry if isinstance(entry, Available) else Available(tokens=entry, windows=-(-entry // mixture.sequence_length))
        for name, entry in available.items()
    }
    phases, used, first_step = [], dict.fromkeys(held, 0), 0
    budgets = [phase.tokens for phase in mixture.phases] or [mixture.tokens]
    for number, (budget, weights) in enumerate(zip(budgets, mixture.weights(), strict=True), 1):
        weights = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
        for name in weights:
            if name not in held or not held[name].windows:
                raise UserError(f"{mixture.name}: source {name!r} has no tokens")
        phase = _plan_phase(mixture, budget, weights, held, first_step)
        for share in phase.shares:
            used[share.source] += share.sequences
            _check_rounding(mixture, share, number)
        phases.append(phase)
        first_step += phase.steps
    for name, sequences in used.items():
        if sequences:
            _check_supply(mixture, mixture.source(name), sequences, held[name])
    keys = ("name", "seed", "sequence_length", "batch_size", "packing")
    consumed = {source.name: source.consumed for source in mixture.sources}
    return MixturePlan(**{key: getattr(mixture, key) for key in keys}, available=held, consumed=consumed, phases=tuple(phases))


def _plan_phase(mixture: Mixture, budget: int | str, weights: dict[str, Fraction], held: dict[str, Available], first_step: int) -> PlannedPhase:
    total = sum(weights.values())
    # Sequences a token of the mixture costs, per source: its share of tokens over its mean tokens a window. Exact.
    cost = {name: weight / total * Fraction(held[name].windows, held[name].tokens) for name, weight in weights.items()}
    if budget == "all":
        limits = {name: _limit(mixture.source(name), held[name]) for name in weights}
        steps = int(min(limits[name] / cost[name] for name in weights) * sum(cost.values()) // mixture.batch_size)
        while steps and any(count > limits[name] for name, count in apportion(cost, steps * mixture.batch_size).items()):
            steps -= 1
    else:
        # Rounded down, so that a plan never asks for more than was budgeted (OLMo-core #316).
        steps = int(budget * sum(cost.values()) // mixture.batch_size)
    if not steps:
        limit = "the sources' windows" if budget == "all" else f"{budget:,} tokens"
        raise UserError(f"{mixture.name}: {limit} do not fill one step of {mixture.batch_size} sequences of {mixture.sequence_length} tokens")
    counts = apportion(cost, steps * mixture.batch_size)
    wanted = Fraction(steps * mixture.batch_size) / sum(cost.values())
    shares = []
    for name, count in counts.items():
        entry = held[name]
        tokens = round(Fraction(count * entry.tokens, entry.windows))
        asked = round(wanted * weights[name] / total)
        shares.append(Share(source=name, asked=asked, tokens=tokens, sequences=count, epochs=round(count / entry.windows, 6)))
    return PlannedPhase(first_step=first_step, steps=steps, shares=tuple(shares))


def apportion(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`, in proportion to `shares` (largest remainder; ties by order)."""
    whole = sum(shares.values())
    quotas = {name: share * total / whole for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    order = sorted(quotas, key=lambda name: counts[name] - quotas[name])
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _check_rounding(mixture: Mixture, share: Share, phase: int) -> None:
    error = abs(share.tokens - share.asked) / max(share.asked, 1)
    if share.sequences == 0 or error > mixture.rounding:
        raise UserError(
            f"{mixture.name}: rounding starves source {share.source!r} in phase {phase}: {share.asked:,} tokens asked, "
            f"{share.sequences} whole sequences hold {share.tokens:,} ({error:.0%} off, {mixture.rounding:.0%} allowed); "
            f"raise tokens or its weight, or shorten sequence_length {mixture.sequence_length}"
        )


def _limit(source: Source, held: Available) -> int:
    """Windows that may still be read."""
    return max(0, int(Fraction(source.max_repetition) * held.windows) - source.consumed)


def _check_supply(mixture: Mixture, source: Source, sequences: int, held: Available) -> None:
    limit = _limit(source, held)
    if sequences <= limit:
        return
    fill = held.tokens / held.windows
    read = f", {round(source.consumed * fill):,} read before" if source.consumed else ""
    what = f"{round(sequences * fill):,} tokens asked, {held.tokens:,} available{read}"
    sequences, limit = sequences + source.consumed, limit + source.consumed
    if source.max_repetition <= 1:
        short = round((sequences - limit) * fill)
        raise UserError(
            f"{mixture.name}: source {source.name!r} falls {short:,} tokens short ({what}); "
            f"lower tokens or its weight, add data, or allow max_repetition {sequences / held.windows:.2f}"
        )
    raise UserError(
        f"{mixture.name}: source {source.name!r} would be repeated {sequences / held.windows:.2f} times, "
        f"max_repetition is {source.max_repetition:g} ({what}); lower tokens or its weight, or add data"
    )


def _resolve(dataset: str, folder: Path) -> str:
    return dataset if "://" in dataset or os.path.isabs(dataset) else os.path.normpath(folder / dataset)
