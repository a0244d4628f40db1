"""A journey as a tree for the screen."""

from collections import Counter
from os.path import basename

from rich.text import Text
from rich.tree import Tree

from flows.consumption import Consumption, Journey, Passage

STEPS_SHOWN = 12
MADE_SHOWN = 5


def tree(journey: Journey) -> Tree:
    """Documents of a page, what was made from them, and who read either."""
    root = Tree(Text(", ".join(journey.ids), style="bold"))
    for identity in journey.ids:
        _passages(root.add(Text(f"document {identity}")), [passage for passage in journey.passages if passage.id == identity])
    if journey.made:
        branch = root.add(Text(f"{len(journey.made)} documents made from it", style="cyan"))
        for identity in journey.made[:MADE_SHOWN]:
            _passages(branch.add(Text(identity)), [passage for passage in journey.passages if passage.id == identity])
    read = root.add(Text("read by", style="cyan") if journey.consumptions else Text("no training run here has read it"))
    for consumption in journey.consumptions:
        read.add(_consumption(consumption))
    return root


def _passages(branch: Tree, passages: list[Passage]) -> None:
    for passage in passages:
        verdict = Text("kept", style="green") if passage.kept else Text(f"left: {passage.facts.get('reason', '')}", style="red")
        facts = "  ".join(f"{name} {value}" for name, value in passage.facts.items() if name != "reason")
        branch.add(Text(f"{basename(passage.dataset)} ({passage.stage})  ").append_text(verdict).append(f"  {facts}", style="dim"))


def _consumption(consumption: Consumption) -> Text:
    label = Text(f"{consumption.run}  {consumption.kind}, {consumption.steps_done} steps  ")
    times = Counter(step for step, _ in consumption.steps)
    shown = [f"{step}" if count == 1 else f"{step} ({count}x)" for step, count in sorted(times.items())]
    more = f", ... ({len(shown) - STEPS_SHOWN} more)" if len(shown) > STEPS_SHOWN else ""
    return label.append(f"{len(consumption.steps)} times, at steps {', '.join(shown[:STEPS_SHOWN])}{more}", style="dim")
