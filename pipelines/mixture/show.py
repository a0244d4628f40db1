"""A plan on the screen: the tree of sources, then what each phase reads."""

from rich.table import Table
from rich.tree import Tree

from pipelines.mixture.plan import MixturePlan


def tree_of(plan: MixturePlan) -> Tree:
    """The plan as `gristmill mix` prints it."""
    tree = Tree(f"[bold]{plan.name}[/]  {plan.tokens:,} tokens = {plan.steps:,} steps, {plan.packing}, seed {plan.seed}")
    if plan.tree:
        branches = [tree.add("sources, weights multiplied")]
        for depth, name, share in plan.tree:
            del branches[depth + 1 :]
            branches.append(branches[-1].add(f"{name}  [dim]{share:.2%}[/]"))
    for number, phase in enumerate(plan.phases, 1):
        total = sum(share.tokens for share in phase.shares)
        asked = sum(share.asked for share in phase.shares)
        table = Table("source", box=None, pad_edge=False, header_style="dim")
        for heading in ("asked", "planned", "tokens", "sequences", "available", "epochs", "so far"):
            table.add_column(heading, justify="right")
        for share in phase.shares:
            lane = plan.lanes[share.lane]
            shares = f"{share.asked / asked:.2%}", f"{share.tokens / total:.2%}"
            upto = sum(other.epochs for other in _shares(plan, share.source, number)) + _before(plan, share.source)
            figures = f"{share.tokens:,}", f"{share.sequences:,}", f"{lane.whole.tokens:,}", f"{share.epochs:.2f}", f"{upto:.2f}"
            table.add_row(share.source, *shares, *figures)
        steps = f"steps {phase.first_step:,} to {phase.first_step + phase.steps:,}"
        tree.add(f"phase {number}: {steps} of {phase.batch_size} x {phase.sequence_length}, {total:,} tokens").add(table)
    return tree


def _shares(plan: MixturePlan, source: str, phases: int):
    return (share for phase in plan.phases[:phases] for share in phase.shares if share.source == source)


def _before(plan: MixturePlan, source: str) -> float:
    """Epochs of a source read by earlier plans."""
    lane = next(lane for lane in plan.lanes if lane.source == source)
    return lane.before + lane.consumed / lane.whole.windows
