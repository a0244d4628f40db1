"""Whether a page is an article, and then where: in one container, less what is set apart from the text in it.

Blocks judged one by one let in whatever reads like text: comments, captions, an author's life, teasers of other articles. What tells these from the article is
where it stands: its paragraphs share a container, as Readability and trafilatura know. The core is the innermost container that holds nearly all of the
running text that stands together; a page is an article if most of what its core seems to say is running text. Then what the core leaves out, what elements and
class names set apart inside it, and lines that are links lose by so much that only the clearest of it stays. Lists, products and forums are no articles, and
nothing here touches them; nor do comments count as set apart on the page of a discussion, which is made of them.
"""

from dataclasses import dataclass

import numpy as np

from kernels import html_blocks as html
from pipelines.extract.layout import Layout, holds_page, inherited
from pipelines.extract.vocabulary import CUE_NAMES, DISCUSSION, ROOT, TAG_ID, mention_bits

SET_APART_TAGS = ("figcaption", "footer", "form", "dialog", "aside", "noscript")
SET_APART_CUES = ("caption", "byline", "newsletter", "consent", "legal", "footer")
CORE_SHARE = 0.8  # of the running text that stands together
TOGETHER = 0.3  # of all running text: if less has a neighbour of its kind, the page's template wraps each paragraph on its own
FEWEST_BLOCKS = 3  # of a core
LEAST, RUNNING_SHARE = 300, 0.5  # characters of running text in an article's core; its share of what is likely text there
MOST_LINKED = 0.5  # of a block's characters, above which it is a link to something else, whatever paragraphs like it are
APART, AFTER, BEFORE, LINKED = -9.0, -4.0, -2.0, -3.0  # log-odds: set apart, behind and before the core (where a lead may stand), for the share in links


@dataclass(frozen=True)
class Article:
    """odds: float64 [B], to be added to those of each block alone; beside: bool [B], what the template never makes text: outside the core, set apart, links."""

    odds: np.ndarray
    beside: np.ndarray


def find_article(page: Layout, odds: np.ndarray) -> Article | None:
    """The article that the page is, if it is one; `odds` float64 [B] are those of each block alone to be text."""
    blocks, node = page.blocks, page.blocks[:, html.NODE]
    apart = _set_apart(page)[node] | ((page.block_cues & _CAPTION) > 0)
    core = _core(page, np.where(apart, 0, blocks[:, html.LONG]))
    before, after = node < core, node >= page.nodes[core, html.LAST]
    beside = apart | before | after
    inside = blocks[~beside]
    likely = inside[odds[~beside] > 0]
    if inside[:, html.LONG].sum() < LEAST or likely[:, html.LONG].sum() < RUNNING_SHARE * likely[:, html.CHARACTERS].sum():
        return None
    linked = blocks[:, html.LINK_CHARACTERS] / blocks[:, html.CHARACTERS]
    return Article(APART * apart + AFTER * after + BEFORE * before + LINKED * linked, beside | (linked > MOST_LINKED) & (page.items[node] == 0))


def _bits(names: tuple[str, ...]) -> np.uint64:
    return np.uint64(sum(1 << CUE_NAMES.index(name) for name in names))


_APART_TAGS = np.isin(np.arange(ROOT + 1), [TAG_ID[name] for name in SET_APART_TAGS])
_CAPTION = _bits(("caption",))
_APART_CUES, _COMMENT, _FORUM = _bits(SET_APART_CUES), _bits(("comment",)), _bits(("forum",))


def _set_apart(page: Layout) -> np.ndarray:
    """bool [N]: the containers that are set apart from the text, and all inside them."""
    nodes, cues, sums = page.nodes, page.node_cues, page.sums
    of_page = holds_page(page)
    apart = ~of_page & (_APART_TAGS[nodes[:, html.TAG]] | ((cues & _APART_CUES) > 0))
    if not page.mentions & mention_bits(DISCUSSION) and not (cues[of_page] & _FORUM).any():
        apart |= ((cues & _COMMENT) > 0) & ~_holding_the_beginning(page) & (sums[:, html.LONG] < sums[0, html.LONG])
    return inherited(nodes, apart.astype(np.uint64)) > 0


def _holding_the_beginning(page: Layout) -> np.ndarray:
    """bool [N]: the containers of the first <h1> or the first running text. However long the comments are, they come later."""
    nodes, node = page.nodes, page.blocks[:, html.NODE]
    firsts = [node[found[:1]] for found in (np.flatnonzero(nodes[node, html.TAG] == TAG_ID["h1"]), np.flatnonzero(page.blocks[:, html.LONG]))]
    index = np.arange(len(nodes))[:, None]
    first = np.concatenate(firsts)
    return ((index <= first) & (first < nodes[:, html.LAST, None])).any(axis=1)


def _core(page: Layout, running: np.ndarray) -> int:
    """The innermost container with `CORE_SHARE` of `running` [B], counting only what has more of its kind beside it where that is a good part."""
    nodes, node = page.nodes, page.blocks[:, html.NODE]
    parent = nodes[node, html.PARENT]
    together = running * (np.bincount(parent, running > 0, len(nodes))[parent] >= 2)
    if together.sum() >= TOGETHER * running.sum():
        running = together
    upto = np.concatenate([[0], np.cumsum(np.bincount(node, running, len(nodes)))])
    inside = upto[nodes[:, html.LAST]] - upto[:-1]
    core = int(np.flatnonzero(inside >= CORE_SHARE * upto[-1])[-1])  # containers with more than half are nested: the last one is the innermost
    while core and page.sums[core, html.BLOCKS] < FEWEST_BLOCKS:
        core = int(nodes[core, html.PARENT])
    return core
