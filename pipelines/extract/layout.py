"""A page as blocks of text in nested containers: what is scored and what the writer writes."""

from dataclasses import dataclass

import numpy as np

from kernels.html_blocks import CHARACTERS, COLUMNS, LONG, build, inherit, sum_subtrees
from kernels.html_mentions import mentions
from kernels.html_text import place
from kernels.html_tokens import PADDING, tokenize
from pipelines.extract import vocabulary

MAX_EVENTS = 3 << 20  # tags and text runs: no honest page of 16 MB comes near
MAX_BLOCKS = 1 << 17


class TooManyBlocks(ValueError):
    """The page holds more tags or blocks than are looked at."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of `nodes`, `blocks` and `sums` are named in `kernels.html_blocks`; B blocks, N containers, E events."""

    html: bytes  # the page, UTF-8
    data: np.ndarray  # uint8: the same, padded
    mentions: int  # bits: which of `vocabulary.MENTIONS` it holds
    events: np.ndarray  # int32 [E, 3]
    nodes: np.ndarray  # int32 [N, 4]
    node_cues: np.ndarray  # uint64 [N]
    blocks: np.ndarray  # int32 [B, COLUMNS]
    block_cues: np.ndarray  # uint64 [B]
    sums: np.ndarray  # int64 [N, COLUMNS]
    items: np.ndarray  # int32 [N]: the list item a container is in; 0: none
    cells: np.ndarray  # int32 [N]: the cell of a data table
    rows: np.ndarray  # int32 [N]: its row
    lists: np.ndarray  # int32 [N]: how many lists it is in
    order: np.ndarray  # int32 [N]: an item's or a cell's place among its siblings, from 1


def lay_out(html: bytes) -> Layout:
    """Raises TooManyBlocks beyond `MAX_EVENTS` or `MAX_BLOCKS`."""
    data = np.frombuffer(html + bytes(PADDING), np.uint8)
    room = 3 * html.count(b"<") + 8
    if room > MAX_EVENTS:
        raise TooManyBlocks(f"{room // 3} tags, looked at: {MAX_EVENTS // 3}")
    events, cues = np.empty((room, 3), np.int32), np.zeros(room, np.uint64)
    count = tokenize(
        data, len(html), vocabulary.TAG_TABLE, vocabulary.OTHER, vocabulary.RAW, vocabulary.WORD_TABLE, vocabulary.ATTRIBUTE_TABLE, events, cues
    )
    events = events[:count]
    nodes, node_cues = np.empty((count + 2, 4), np.int32), np.empty(count + 2, np.uint64)
    most = min(count + 1, MAX_BLOCKS)
    blocks, block_cues = np.empty((most, COLUMNS), np.int32), np.empty(most, np.uint64)
    node_count, block_count = build(
        data, events, cues, vocabulary.TRAITS, vocabulary.SIBLINGS, vocabulary.FENCES, nodes, node_cues, blocks, block_cues
    )
    if block_count < 0:
        raise TooManyBlocks(f"more than {MAX_BLOCKS} blocks of text")
    nodes, blocks = nodes[:node_count], blocks[:block_count]
    sums = np.empty((node_count, COLUMNS), np.int64)
    sum_subtrees(nodes, blocks, sums)
    places = np.empty((5, node_count), np.int32)
    place(nodes, sums, vocabulary.ROLES, *places)
    said = int(mentions(data, len(html), *vocabulary.NEEDLES))
    return Layout(
        html, data, said, events, nodes, node_cues[:node_count], blocks, block_cues[:block_count], sums, *places
    )


PAGE_SHARE = 0.4  # of the page's characters or of its running text, from which a container is the page


def holds_page(page: Layout) -> np.ndarray:
    """bool [N]: the containers that hold a good part of the page. Their cues ("has-sidebar", "comments-open") say nothing of what is inside."""
    characters, running = page.sums[:, CHARACTERS], page.sums[:, LONG]
    return (characters >= PAGE_SHARE * characters[0]) | (running >= PAGE_SHARE * max(running[0], 1))


def inherited(nodes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """uint64 [N]: each container's bits and those of all above it."""
    path = np.empty(len(nodes), np.uint64)
    inherit(nodes, own, path)
    return path
