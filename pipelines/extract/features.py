"""What the classifier knows of a block: its own words, the containers it stands in, its neighbours, its page.

One float32 row a block. No feature is a word of the text, an address or a language: only counts, tags and the cues of `vocabulary`, so that
what is learnt on pages in one language holds in others.
"""

import numpy as np

from kernels import html_blocks as html
from kernels.html_blocks import widening
from pipelines.extract.layout import Layout, inherited
from pipelines.extract.vocabulary import CUE_NAMES, KINDS, OTHER, TAG_ID, mention_bits

LEVELS = 4  # containers looked at, from the inside
_CONTEXT = """article main nav header footer aside form table ul ol dl blockquote figure figcaption section details dialog
button a p pre label menu td th li h1 h2 h3 h4 h5 h6 dt dd address caption summary center noscript""".split()
_CONTEXT_BIT = np.zeros(OTHER + 2, np.uint64)
for _bit, _name in enumerate(_CONTEXT):
    _CONTEXT_BIT[TAG_ID[_name]] = np.uint64(1) << np.uint64(_bit)
_OWN = (
    *("characters", "words", "link_share", "bold_share", "word_length"),
    *("stops", "commas", "digits", "uppers", "breaks", "links"),  # a word
    *("starts_upper", "ends_stop", "copies"),
)
_LEVEL = ("characters", "link_share", "block_length", "stops", "page_share", "long_share", "depth")
_PLACE = ("index", "offset", "depth", "from_heading", "in_majority", "majority_before", "majority_after", "in_core", "since_long", "until_long")
_PAGE = ("characters", "blocks", "link_share", "long_share", "block_length", "majority_share", "majority_link_share", "articles", "items", "cells")
_SHARES = ("comment", "forum", "product", "card", "article", "post", "content", "related", "review", "sidebar")  # cues whose share of the page's text is told
_BESIDE = (-3, -2, -1, 1, 2, 3)
_BESIDE_COLUMNS = ("characters", "link_share", "stops", "heading", "same_container")
NAMES = (
    *(f"own.{name}" for name in _OWN),
    *(f"level{level}.{name}" for level in range(LEVELS) for name in _LEVEL),
    *(f"place.{name}" for name in _PLACE),
    *(f"page.{name}" for name in _PAGE),
    *(f"kind.{name}" for name in KINDS),
    *(f"share.{name}" for name in _SHARES),
    *(f"beside{by:+d}.{name}" for by in _BESIDE for name in _BESIDE_COLUMNS),
    *(f"in.{name}" for name in _CONTEXT),
    *(f"near.{name}" for name in CUE_NAMES),
    *(f"within.{name}" for name in CUE_NAMES),
    "within.hidden",
)


def features(page: Layout) -> np.ndarray:
    """float32 [B, len(NAMES)]."""
    blocks, sums, nodes = page.blocks.astype(np.float32), page.sums, page.nodes
    count = len(blocks)
    if not count:
        return np.empty((0, len(NAMES)), np.float32)
    rows = np.empty((len(NAMES), count), np.float32)
    characters, links, long = blocks[:, html.CHARACTERS], blocks[:, html.LINK_CHARACTERS], blocks[:, html.LONG]
    words = np.maximum(blocks[:, html.WORDS], 1)
    link_share = links / characters
    total = sums[0]
    _, group, sizes = np.unique(page.hashes, return_inverse=True, return_counts=True)
    columns: list[np.ndarray | float] = [
        np.log1p(characters),
        np.log1p(words),
        link_share,
        blocks[:, html.BOLD_CHARACTERS] / characters,
        characters / words,
        *(blocks[:, column] / words for column in (html.STOPS, html.COMMAS, html.DIGITS, html.UPPERS, html.BREAKS, html.LINKS)),
        blocks[:, html.STARTS_UPPER],
        blocks[:, html.ENDS_STOP],
        sizes[group],
    ]

    containers = np.empty((count, LEVELS), np.int32)
    widening(nodes, page.blocks, sums, containers)
    summed = sums.astype(np.float32)
    node_depth = nodes[:, html.DEPTH].astype(np.float32)
    per_node = np.stack(
        [
            np.log1p(summed[:, html.CHARACTERS]),
            summed[:, html.LINK_CHARACTERS] / np.maximum(summed[:, html.CHARACTERS], 1),
            summed[:, html.CHARACTERS] / np.maximum(summed[:, html.BLOCKS], 1),
            summed[:, html.STOPS] / np.maximum(summed[:, html.WORDS], 1),
            summed[:, html.CHARACTERS] / total[html.CHARACTERS],
            summed[:, html.LONG] / max(total[html.LONG], 1),
            node_depth,
        ]
    )
    for level in range(LEVELS):
        columns.extend(per_node[:, containers[:, level]])

    node = page.blocks[:, html.NODE]
    context = inherited(nodes, _CONTEXT_BIT[nodes[:, html.TAG]])[node]
    own_heading = np.isin(nodes[node, html.TAG], _HEADINGS)
    index = np.arange(count)
    h1 = np.flatnonzero(nodes[node, html.TAG] == TAG_ID["h1"])
    majority, core = _holding(sums, html.LONG, 0.5), _holding(sums, html.LONG, 0.9)
    inside = (node >= majority) & (node < nodes[majority, html.LAST])
    places = np.flatnonzero(inside)
    first, last = (places[0], places[-1]) if len(places) else (0, count - 1)
    runs = np.where(long > 0, index, -count)
    before = index - np.maximum.accumulate(runs)
    runs = np.where(long > 0, index, 2 * count)
    after = np.minimum.accumulate(runs[::-1])[::-1] - index
    columns += [
        index / count,
        (np.cumsum(characters) - characters) / total[html.CHARACTERS],
        node_depth[node],
        np.clip(index - h1[0], -50, 50) if len(h1) else 99.0,
        inside,
        np.clip(first - index, -20, 50),
        np.clip(index - last, -20, 50),
        (node >= core) & (node < nodes[core, html.LAST]),
        np.minimum(before, 30),
        np.minimum(after, 30),
    ]
    tags = np.bincount(nodes[:, html.TAG], minlength=OTHER + 2)
    columns += [
        np.log1p(total[html.CHARACTERS]),
        np.log1p(count),
        total[html.LINK_CHARACTERS] / total[html.CHARACTERS],
        total[html.LONG] / total[html.CHARACTERS],
        total[html.CHARACTERS] / count,
        sums[majority, html.CHARACTERS] / total[html.CHARACTERS],
        sums[majority, html.LINK_CHARACTERS] / max(sums[majority, html.CHARACTERS], 1),
        tags[TAG_ID["article"]],
        tags[TAG_ID["li"]] / count,
        tags[TAG_ID["td"]] / count,
    ]
    columns += [page.mentions & mention_bits(words) > 0 for words in KINDS.values()]
    within = inherited(nodes, page.node_cues)[node] | page.block_cues
    columns += [characters @ (within >> np.uint64(CUE_NAMES.index(name)) & np.uint64(1)).astype(np.float32) / total[html.CHARACTERS] for name in _SHARES]
    own = np.stack([columns[0], link_share, columns[5], own_heading.astype(np.float32)])
    for by in _BESIDE:
        other = index + by
        there = (other >= 0) & (other < count)
        other = np.clip(other, 0, count - 1)
        columns.extend(np.where(there, own[:, other], -1))
        columns.append(there & (containers[other, 0] == containers[:, 0]))
    for place, column in enumerate(columns):
        rows[place] = column

    at = len(columns)
    near = page.node_cues | np.where(nodes[:, html.DEPTH] > 0, page.node_cues[nodes[:, html.PARENT]], np.uint64(0))
    near |= near[nodes[:, html.PARENT]]  # itself and three containers up
    for bits, width in ((context, len(_CONTEXT)), (near[node] | page.block_cues, len(CUE_NAMES)), (within, len(CUE_NAMES))):
        rows[at : at + width] = np.unpackbits(bits.view(np.uint8).reshape(count, 8), axis=1, bitorder="little")[:, :width].T
        at += width
    rows[at] = within >> np.uint64(63)
    return np.ascontiguousarray(rows.T)


_HEADINGS = np.array([TAG_ID[f"h{level}"] for level in range(1, 7)])


def _holding(sums: np.ndarray, column: int, share: float) -> int:
    """The innermost container with more than `share` (>= half) of the page's count: those containers are nested, so it is the last of them."""
    return int(np.flatnonzero(sums[:, column] >= share * max(sums[0, column], 1))[-1]) if sums[0, column] else 0
