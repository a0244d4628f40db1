"""How likely each block of a page is main text, from weights that a person set and can read.

Text is long, in sentences and poor in links, and so are the containers around it; what surrounds text says so in its tags and class names
(`vocabulary.CUES`). Each of these is worth some log-odds, given below; they are added up, and a block then leans towards its neighbours.

No program fitted these numbers. A person set them, and changed a few after seeing what `benchmarks/extraction.py` said of every second page of its sets.
"""

import numpy as np

from kernels import html_blocks as html
from kernels.html_blocks import widening
from pipelines.extract.layout import Layout, holds_page, inherited
from pipelines.extract.vocabulary import CUE_NAMES, ROOT, TAG_ID

BIAS = -2.0
LENGTH, SHORT, LONGEST = 0.9, 33, 660  # a block's log length, from SHORT characters (a menu entry) on, up to LONGEST
SENTENCES, ENDS_SENTENCE = 4.0, 0.8  # for each sentence's end a word; for one at the block's end
LINKS = (-4.0, -2.0, -1.0)  # the share of characters in links: of the block, and of the second and third of the ever wider containers around it
RUNNING = 1.0  # the share of the page's running text in these two
MAJORITY, CORE = 1.2, 1.0  # inside the innermost container of half, of nine tenths, of the page's running text
LEAN, REACH = 1.0, 3  # towards what the blocks up to REACH before and after are

TAGS = {
    "article": 0.8, "main": 0.8, "p": 0.8, "blockquote": 0.5, "pre": 1.0, "h1": 0.5, "h2": 0.5, "h3": 0.5, "nav": -4, "footer": -3, "dialog": -3, "aside": -2.5,
    "button": -2, "header": -1.5, "label": -1.5, "form": -1, "address": -1, "noscript": -1, "figure": -0.5,
}  # fmt: skip
CUES = {
    "article": 0.5, "content": 0.5, "post": 0.3, "title": 0.2, "code": 0.5,
    "consent": -4, "breadcrumb": -3, "newsletter": -3, "skip": -3, "navigation": -2.5, "footer": -2.5, "related": -2.5, "share": -2.5, "advertisement": -2.5,
    "sidebar": -2, "popup": -2, "pagination": -2, "language": -2, "account": -1.5, "search": -1.5, "tags": -1.5, "byline": -1.2, "widget": -1, "comment": -1,
    "toc": -1, "legal": -1, "profile": -1, "banner": -1, "action": -1, "header": -0.5, "media": -0.5, "caption": -0.5, "print": -0.5,
}  # fmt: skip
HIDDEN = -1.5  # for screen readers only


def _bits(names: dict[str, float], places: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [places], one bit for each name; float64 [64], what each bit is worth."""
    bits, worth = np.zeros(max(places.values()) + 1, np.uint64), np.zeros(64)
    for bit, (name, value) in enumerate(names.items()):
        bits[places[name]], worth[bit] = np.uint64(1) << np.uint64(bit), value
    return bits, worth


_TAG_BITS, _TAG_WORTH = _bits(TAGS, TAG_ID | {"": ROOT})
_CUE_WORTH = np.array([*(CUES.get(name, 0.0) for name in CUE_NAMES), *[0.0] * (63 - len(CUE_NAMES)), HIDDEN])


def alone(page: Layout) -> np.ndarray:
    """float64 [B]: each block's log-odds of being main text, by itself and what it stands in."""
    return _own(page) + _containers(page) + _signs(page)


def among_neighbours(page: Layout, own: np.ndarray) -> np.ndarray:
    """float64 [B]: how likely each block is main text, of log-odds `own`, given those of the blocks around it."""
    words = np.maximum(page.blocks[:, html.WORDS], 1)
    likely = np.concatenate([[0.0], np.cumsum(words * _logistic(own))])
    before = np.concatenate([[0.0], np.cumsum(words)])
    index = np.arange(len(own))
    first, last = np.maximum(index - REACH, 0), np.minimum(index + REACH + 1, len(own))
    around = (likely[last] - likely[first]) / (before[last] - before[first])
    return _logistic(own + LEAN * (around - 0.5))


def _own(page: Layout) -> np.ndarray:
    blocks = page.blocks.astype(np.float64)
    characters, words = blocks[:, html.CHARACTERS], np.maximum(blocks[:, html.WORDS], 1)
    length = np.log(np.clip(characters, 3, LONGEST) / SHORT)
    signs = SENTENCES * blocks[:, html.STOPS] / words + ENDS_SENTENCE * blocks[:, html.ENDS_STOP] + LINKS[0] * blocks[:, html.LINK_CHARACTERS] / characters
    return BIAS + LENGTH * length + signs


def _containers(page: Layout) -> np.ndarray:
    sums, nodes, node = page.sums.astype(np.float64), page.nodes, page.blocks[:, html.NODE]
    around = np.empty((len(page.blocks), 3), np.int32)
    widening(nodes, page.blocks, page.sums, around)
    link_share = sums[:, html.LINK_CHARACTERS] / np.maximum(sums[:, html.CHARACTERS], 1)
    running = sums[:, html.LONG] / max(sums[0, html.LONG], 1)
    found = np.zeros(len(page.blocks))
    for level in (1, 2):
        found += LINKS[level] * link_share[around[:, level]] + RUNNING * running[around[:, level]]
    if sums[0, html.LONG]:
        for share, worth in ((0.5, MAJORITY), (0.9, CORE)):
            holder = int(np.flatnonzero(running >= share)[-1])  # containers with at least half are nested: the last one is the innermost
            found += worth * ((node >= holder) & (node < nodes[holder, html.LAST]))
    return found


def _signs(page: Layout) -> np.ndarray:
    nodes, node = page.nodes, page.blocks[:, html.NODE]
    cues = inherited(nodes, np.where(holds_page(page), np.uint64(0), page.node_cues))[node] | page.block_cues
    tags = inherited(nodes, _TAG_BITS[nodes[:, html.TAG]])[node]
    return _worth(tags, _TAG_WORTH) + _worth(cues, _CUE_WORTH)


def _worth(bits: np.ndarray, worth: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits.view(np.uint8).reshape(len(bits), 8), axis=1, bitorder="little") @ worth


def _logistic(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
