"""The run's lineage as one SVG: what was made from what, each box with its count and the head of its digest.

Layers are longest paths from the sources, top to bottom, so that the drawing is narrow enough for a phone held upright.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 168, 58, 22, 42, 6


@dataclass(frozen=True)
class Node:
    """A dataset, a set of shards or a trained model. `kind` picks the colour: data, synthetic, shards, model, measure."""

    name: str
    kind: str
    figure: str
    digest: str
    parents: tuple[str, ...] = ()


def draw(nodes: Sequence[Node]) -> Markup:
    """Draw the graph; parents that are not among the nodes are left out."""
    known = {node.name for node in nodes}
    layer: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in layer:
            parents = [parent for parent in by_name[name].parents if parent in known]
            layer[name] = 1 + max(map(depth, parents), default=-1)
        return layer[name]

    by_name = {node.name: node for node in nodes}
    for node in nodes:
        depth(node.name)
    rows: list[list[Node]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in nodes:
        rows[layer[node.name]].append(node)
    widest = max((len(row) for row in rows), default=1)
    width = widest * BOX_WIDTH + (widest - 1) * GAP_X + 2 * MARGIN
    height = len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    place: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        row.sort(key=lambda node: sum(place[parent][0] for parent in node.parents if parent in place) / max(1, sum(parent in place for parent in node.parents)))
        taken = len(row) * BOX_WIDTH + (len(row) - 1) * GAP_X
        left = (width - taken) / 2
        for index, node in enumerate(row):
            place[node.name] = (left + index * (BOX_WIDTH + GAP_X), MARGIN + level * (BOX_HEIGHT + GAP_Y))
    edges = [_edge(place[parent], place[node.name], layer[node.name] - layer[parent]) for node in nodes for parent in node.parents if parent in place]
    boxes = [_box(node, *place[node.name]) for node in nodes]
    frame = f'class="lineage" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="lineage graph"'
    return Markup(f"<svg {frame}>{''.join(edges)}{''.join(boxes)}</svg>")


def _edge(start: tuple[float, float], end: tuple[float, float], span: int) -> str:
    x1, y1 = start[0] + BOX_WIDTH / 2, start[1] + BOX_HEIGHT
    x2, y2 = end[0] + BOX_WIDTH / 2, end[1]
    bow = (26 if x2 >= x1 else -26) * (span - 1)  # a long edge bows out around the boxes it passes
    middle = (y1 + y2) / 2
    return f'<path class="edge" d="M{x1:.1f} {y1:.1f} C{x1 + bow * 3:.1f} {middle:.1f} {x2 + bow * 3:.1f} {middle:.1f} {x2:.1f} {y2:.1f}"/>'


def _box(node: Node, x: float, y: float) -> str:
    lines = [("name", node.name), ("figure", node.figure), ("digest", node.digest[:12])]
    texts = "".join(
        f'<text class="{kind}" x="{x + 12:.1f}" y="{y + 19 + 16 * index:.1f}">{escape(text)}</text>' for index, (kind, text) in enumerate(lines) if text
    )
    return f'<g class="{escape(node.kind)}"><rect x="{x:.1f}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"/>{texts}</g>'
