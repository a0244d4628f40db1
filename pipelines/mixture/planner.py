"""From weights to whole sequences, or a refusal that names the source and the numbers.

A plan that does not add up is found here and not after three days of training: a source that runs out, one that would be
repeated more often than its owner allows, one whose share rounds to nothing. A source's windows are not all full (a tail,
best-fit packing), so tokens become sequences through each source's mean tokens a window, and what is achieved is what was asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from pipelines.errors import UserError
from pipelines.mixture.plan import Available, Lane, MixturePlan, PlannedPhase, Share
from pipelines.mixture.recipe import Mixture, Source
from pipelines.mixture.supply import Estimate, Supply
from pipelines.mixture.timeline import drawn_in


@dataclass
class _Reading:
    """How far a source has been read: its present lane and the sequences drawn of it."""

    lane: Lane
    read: int
    number: int
    """the lane's number in the plan; -1 while no phase has used it"""


def plan(mixture: Mixture, supply: Supply | Mapping[str, Available | int], earlier: MixturePlan | None = None) -> MixturePlan:
    """Plan a mixture over what its sources hold.

    Args:
        supply: per source what it holds; a mapping to tokens (in full windows), or to `Available`, will do.
        earlier: the plan that `mixture.after` names.

    Raises:
        UserError: a source is empty, falls short, would be repeated more than `max_repetition` allows, or its share
            cannot be met in whole sequences within `mixture.rounding`. Names the source and the numbers.
    """
    if isinstance(supply, Mapping):
        supply = Estimate(supply, mixture.sequence_length)
    readings = _readings(mixture, earlier)
    lanes: list[Lane] = []
    phases: list[PlannedPhase] = []
    first_step = 0
    shapes = [(p.tokens, p.sequence_length or mixture.sequence_length, p.batch_size or mixture.batch_size) for p in mixture.phases]
    shapes = shapes or [(mixture.tokens, mixture.sequence_length, mixture.batch_size)]
    for number, ((budget, length, batch), weights) in enumerate(zip(shapes, mixture.weights(), strict=True), 1):
        weights = {name: weight for name, weight in weights.items() if weight > 0}
        for name in weights:
            _enter_lane(mixture, name, length, supply, readings, lanes)
        phase = _plan_phase(mixture, (budget, length, batch), weights, readings, first_step)
        for share in phase.shares:
            _check_rounding(mixture, share, number, length)
            _check_supply(mixture.source(share.source), share, readings[share.source], mixture.name)
            readings[share.source].read += share.sequences
        phases.append(phase)
        first_step += phase.steps
    keys = ("name", "seed", "sequence_length", "batch_size", "packing")
    held = {leaf.source.name: supply.whole(leaf.source.name, mixture.sequence_length, mixture.packing) for leaf in mixture.leaves()}
    values = {key: getattr(mixture, key) for key in keys}
    return MixturePlan(**values, tree=_tree(mixture), available=held, lanes=tuple(lanes), phases=tuple(phases))


def _readings(mixture: Mixture, earlier: MixturePlan | None) -> dict[str, _Reading]:
    """Where an earlier plan stopped reading each source: the last lane it used, and how far."""
    if (mixture.after is None) != (earlier is None):
        raise UserError(f"{mixture.name}: a plan that goes on after another needs that one (`after`), and only then")
    if earlier is None:
        return {}
    if mixture.after.step > earlier.steps:
        raise UserError(f"{mixture.name}: step {mixture.after.step} is after the end of the earlier plan, which has {earlier.steps} steps")
    readings: dict[str, _Reading] = {}
    for phase in earlier.phases:
        if phase.first_step <= mixture.after.step:
            for share, drawn in zip(phase.shares, drawn_in(phase, mixture.after.step), strict=True):
                if drawn or share.source not in readings:
                    readings[share.source] = _Reading(earlier.lanes[share.lane], share.first + drawn, -1)
    for lane in earlier.lanes:  # read by plans before the earlier one and not by it
        readings.setdefault(lane.source, _Reading(lane, lane.consumed, -1))
    return readings


def _enter_lane(mixture: Mixture, name: str, length: int, supply: Supply, readings: dict[str, _Reading], lanes: list[Lane]) -> None:
    """Let the source's reading be in a lane of this length that belongs to this plan."""
    at = readings.get(name)
    if at is None or (at.lane.sequence_length, at.lane.packing, at.lane.seed) != (length, mixture.packing, mixture.seed):
        whole = supply.whole(name, length, mixture.packing)
        if not whole.windows:
            raise UserError(f"{mixture.name}: source {name!r} has no tokens")
        rest = supply.rest(at.lane, at.read, length, mixture.packing) if at else None
        before = at.lane.before + supply.earlier(at.lane, at.read) / whole.tokens if at else 0.0
        shape = {"sequence_length": length, "packing": mixture.packing, "seed": mixture.seed}
        lane = Lane(source=name, **shape, key=at.lane.key + 1 if at else 0, before=before, rest=rest, whole=whole, consumed=0)
        at = readings[name] = _Reading(lane, 0, -1)
    if at.number < 0:
        at.lane = at.lane.model_copy(update={"consumed": at.read})
        at.number = len(lanes)
        lanes.append(at.lane)


def _plan_phase(mixture: Mixture, shape: tuple, weights: dict[str, Fraction], readings: dict[str, _Reading], first_step: int) -> PlannedPhase:
    budget, length, batch = shape
    total = sum(weights.values())
    # Sequences a token of the mixture costs, per source: its share of tokens over its mean tokens a window. Exact.
    cost = {name: weight / total / _mean(readings[name]) for name, weight in weights.items()}
    if budget == "all":
        limits = {name: _limit(mixture.source(name), readings[name]) for name in weights}
        steps = int(min(limits[name] / cost[name] for name in weights) * sum(cost.values()) // batch)
        while steps and any(count > limits[name] for name, count in apportion(cost, steps * batch).items()):
            steps -= 1
    else:
        # Rounded down, so that a plan never asks for more than was budgeted (OLMo-core #316).
        steps = int(budget * sum(cost.values()) // batch)
    if not steps:
        limit = "the sources' windows" if budget == "all" else f"{budget:,} tokens"
        raise UserError(f"{mixture.name}: {limit} do not fill one step of {batch} sequences of {length} tokens")
    wanted = Fraction(steps * batch) / sum(cost.values())
    shares = []
    for name, count in apportion(cost, steps * batch).items():
        at = readings[name]
        asked = round(wanted * weights[name] / total)
        tokens = round(count * _mean(at))
        epochs = round(float(count * _mean(at) / at.lane.whole.tokens), 6)
        shares.append(Share(source=name, asked=asked, tokens=tokens, sequences=count, epochs=epochs, lane=at.number, first=at.read))
    return PlannedPhase(first_step=first_step, steps=steps, sequence_length=length, batch_size=batch, shares=tuple(shares))


def apportion(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total`, in proportion to `shares` (largest remainder; ties by order)."""
    whole = sum(shares.values())
    quotas = {name: share * total / whole for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    order = sorted(quotas, key=lambda name: counts[name] - quotas[name])
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _mean(at: _Reading) -> Fraction:
    """Tokens a window of the pass that is being read."""
    rest = at.lane.rest
    now = rest if rest is not None and at.read < rest.windows else at.lane.whole
    return Fraction(now.tokens, now.windows)


def _limit(source: Source, at: _Reading) -> int:
    """Windows of the lane that may still be read."""
    rest, whole = at.lane.rest, at.lane.whole
    tokens = Fraction(source.max_repetition) * whole.tokens - round(at.lane.before * whole.tokens)
    if rest is None:
        most = tokens * whole.windows / whole.tokens
    elif tokens < rest.tokens:
        most = tokens * rest.windows / rest.tokens
    else:
        most = rest.windows + (tokens - rest.tokens) * whole.windows / whole.tokens
    return max(0, int(most) - at.read)


def _check_rounding(mixture: Mixture, share: Share, phase: int, length: int) -> None:
    error = abs(share.tokens - share.asked) / max(share.asked, 1)
    if share.sequences == 0 or error > mixture.rounding:
        raise UserError(
            f"{mixture.name}: rounding starves source {share.source!r} in phase {phase}: {share.asked:,} tokens asked, "
            f"{share.sequences} whole sequences hold {share.tokens:,} ({error:.0%} off, {mixture.rounding:.0%} allowed); "
            f"raise tokens or its weight, or shorten sequence_length {length}"
        )


def _check_supply(source: Source, share: Share, at: _Reading, mixture: str) -> None:
    limit = _limit(source, at)
    if share.sequences <= limit:
        return
    whole, mean = at.lane.whole, _mean(at)
    before = round(at.lane.before * whole.tokens) + round(at.read * mean)
    asked = round((at.read - at.lane.consumed) * mean) + share.tokens
    read = f", {before - asked + share.tokens:,} read before" if before - asked + share.tokens else ""
    what = f"{asked:,} tokens asked, {whole.tokens:,} available{read}"
    times = (before + share.tokens) / whole.tokens
    if source.max_repetition <= 1:
        short = round((share.sequences - limit) * mean)
        raise UserError(
            f"{mixture}: source {source.name!r} falls {short:,} tokens short ({what}); "
            f"lower tokens or its weight, add data, or allow max_repetition {times:.2f}"
        )
    raise UserError(
        f"{mixture}: source {source.name!r} would be repeated {times:.2f} times, "
        f"max_repetition is {source.max_repetition:g} ({what}); lower tokens or its weight, or add data"
    )


def _tree(mixture: Mixture) -> tuple[tuple[int, str, float], ...]:
    """The nested mixture for people to look at; nothing if nothing is nested."""
    leaves = mixture.leaves()
    if not any(leaf.groups for leaf in leaves):
        return ()
    rows: list[tuple[int, str, float]] = []
    path: tuple[str, ...] = ()
    for leaf in leaves:
        for depth, group in enumerate(leaf.groups):
            if leaf.groups[: depth + 1] != path[: depth + 1]:
                inside = sum(other.weight for other in leaves if other.groups[: depth + 1] == leaf.groups[: depth + 1])
                rows.append((depth, group, round(float(inside), 6)))
        path = leaf.groups
        rows.append((len(path), leaf.source.name, round(float(leaf.weight), 6)))
    return tuple(rows)
