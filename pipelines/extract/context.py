"""What the first look at a page's blocks says about each of them in its surroundings: the second look's features.

A block that looks like boilerplate amid text is usually text (a date, a short heading, a cell), and the other way round. The second classifier sees
the first one's probabilities of the neighbours, of the containers around, and of the page.
"""

import numpy as np

from kernels import html_blocks as html
from kernels.html_blocks import spans, widening
from pipelines.extract.layout import Layout

_BESIDE = (-4, -3, -2, -1, 1, 2, 3, 4)
_RADII = (2, 5, 12)
_LEVELS = 5
NAMES = (
    "first.own",
    *(f"first.beside{by:+d}" for by in _BESIDE),
    *(f"first.within{radius}" for radius in _RADII),
    *(f"first.level{level}" for level in range(_LEVELS)),
    *(f"first.{name}" for name in ("table_row", "page_mean", "page_highest", "page_words", "rank", "since_text", "until_text")),
)


def context(page: Layout, first: np.ndarray) -> np.ndarray:
    """float32 [B, len(NAMES)] of the first probabilities float32 [B]."""
    count = len(first)
    index = np.arange(count)
    words = np.maximum(page.blocks[:, html.WORDS], 1)
    summed_words = np.concatenate([[0.0], np.cumsum(words)])
    summed = np.concatenate([[0.0], np.cumsum(words * first.astype(np.float64))])

    def mean(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return (summed[end] - summed[start]) / np.maximum(summed_words[end] - summed_words[start], 1)

    padded = np.concatenate([np.full(4, -1.0), first, np.full(4, -1.0)])
    columns = [first, *(padded[4 + by : 4 + by + count] for by in _BESIDE)]
    columns += [mean(np.maximum(index - radius, 0), np.minimum(index + radius + 1, count)) for radius in _RADII]
    containers, span = np.empty((count, _LEVELS), np.int32), np.empty((len(page.nodes), 2), np.int32)
    widening(page.nodes, page.blocks, page.sums, containers)
    spans(page.nodes, page.blocks, span)
    columns += [mean(*span[containers[:, level]].T) for level in range(_LEVELS)]
    rows = page.rows[page.blocks[:, html.NODE]]
    columns.append(np.where(rows > 0, mean(*span[rows].T), -1))
    text = np.flatnonzero(first > 0.5)
    begin, end = (text[0], text[-1]) if len(text) else (0, count - 1)
    rank = np.empty(count)
    rank[np.argsort(-first, kind="stable")] = index / count
    columns += [
        np.full(count, summed[-1] / summed_words[-1]),
        np.full(count, first.max()),
        np.full(count, summed[-1]),
        rank,
        np.clip(index - begin, -30, 30),
        np.clip(end - index, -30, 30),
    ]
    return np.stack(columns, axis=1).astype(np.float32)
