"""Which blocks of a page are its main text: how likely each is (`scores`, `article`), and a choice made for the page as a whole.

The blocks kept are those that make the expected F-score of the page's words highest, given the probabilities: a page sure of its text drops what is
doubtful, a page of scattered pieces keeps it, and no threshold per kind of page is needed. What the page's template makes in the same way as these is
kept with them; an article's data tables are, and its headings with what they head.
"""

import numpy as np

from kernels import html_blocks as html
from kernels.html_blocks import template_paths
from kernels.html_text import CODE
from pipelines.extract.article import find_article
from pipelines.extract.layout import Layout
from pipelines.extract.scores import alone, among_neighbours
from pipelines.extract.vocabulary import ROLES, ROOT, TAG_ID

# The F-score's beta, squared: below 1, precision counts more. What is doubtful on the page of an article is mostly of other articles; elsewhere
# (lists, products) the doubtful is the page's content.
_BETA_SQUARED_ARTICLE, _BETA_SQUARED_OTHER = 0.5, 2.0
_SHARE_KEPT = 0.3  # of the words at one path, above which all are kept
_HEADING_LIKELY = 0.3  # of a heading over kept text, to be kept with it
_HEADINGS = np.zeros(ROOT + 1, bool)
_HEADINGS[[TAG_ID[name] for name in ("h1", "h2", "h3", "h4", "h5", "h6")]] = True


def main_text(page: Layout) -> np.ndarray:
    """bool [B]: the blocks that are main text."""
    if not len(page.blocks):
        return np.zeros(0, bool)
    odds = alone(page)
    article = find_article(page, odds)
    if article is None:
        return complete(page, choose(page, among_neighbours(page, odds), _BETA_SQUARED_OTHER))
    probability = among_neighbours(page, odds + article.odds)
    keep = choose(page, probability, _BETA_SQUARED_ARTICLE)
    keep |= (complete(page, keep) | _tables(page)) & ~article.beside
    return with_headings(page, keep, probability)


def complete(page: Layout, keep: np.ndarray) -> np.ndarray:
    """`keep` and all blocks like those kept: where a good part of the words at one path of tags and cues is text, the rest is too.

    A page's template makes the paragraphs of its article in one way and the headlines of others in another: an odd paragraph stays with its siblings,
    and a list stays whole.
    """
    path = np.empty(len(page.nodes), np.uint64)
    template_paths(page.nodes, page.node_cues, path)
    words = np.maximum(page.blocks[:, html.WORDS], 1)
    _, kind = np.unique(path[page.blocks[:, html.NODE]], return_inverse=True)
    share = np.bincount(kind, keep * words) / np.bincount(kind, words)
    return keep | (share[kind] > _SHARE_KEPT)


def _tables(page: Layout) -> np.ndarray:
    """bool [B]: what stands in data tables of text rather than links. In an article a table belongs to it, though its cells read like no text."""
    row = page.rows[page.blocks[:, html.NODE]]
    table = page.sums[page.nodes[row, html.PARENT]]
    return (row > 0) & (2 * table[:, html.LINK_CHARACTERS] <= table[:, html.CHARACTERS])


def with_headings(page: Layout, keep: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """`keep` with the headings that stand over a kept block and without those that do not ("Related"), nor an <h1> above all text:
    it is the page's title. Running text that looks like a heading is none, but a lead."""
    tag = page.nodes[page.blocks[:, html.NODE], html.TAG]
    headings = np.flatnonzero(_HEADINGS[tag] & (page.blocks[:, html.LONG] == 0))
    prose = np.delete(np.arange(len(keep)), headings)
    if not keep[prose].any():
        return keep
    keep = keep.copy()
    headed = np.append(keep[prose], False)[np.searchsorted(prose, headings)]
    keep[headings] = headed & (keep[headings] | (probability[headings] > _HEADING_LIKELY))
    first = int(np.argmax(keep & (tag != TAG_ID["h1"])))
    return keep & ~((tag == TAG_ID["h1"]) & (np.arange(len(keep)) < first))


def choose(page: Layout, probability: np.ndarray, beta_squared: float) -> np.ndarray:
    """The blocks of highest expected F-beta = (1 + b) E[words both] / (E[words kept] + b E[words wanted]);
    rows of data tables stay whole, code stays with its text."""
    words = np.maximum(page.blocks[:, html.WORDS], 1)
    row = page.rows[page.blocks[:, html.NODE]]
    likely = probability * words
    if row.any():
        shared = np.bincount(row, likely) / np.maximum(np.bincount(row, words), 1)
        likely = np.where(row > 0, shared[row] * words, likely)
    by_likelihood = np.argsort(-likely / words, kind="stable")
    expected = np.cumsum(likely[by_likelihood]) / (np.cumsum(words[by_likelihood]) + beta_squared * likely.sum())
    keep = np.zeros(len(words), bool)
    keep[by_likelihood[: int(np.argmax(expected)) + 1]] = True
    return keep | _code_beside(page, keep)


def _code_beside(page: Layout, keep: np.ndarray) -> np.ndarray:
    """bool [B]: the <pre> blocks whose nearest other block, before or after, is kept. Code has few words and no sentences; beside text it is text."""
    code = ROLES[page.nodes[page.blocks[:, html.NODE], html.TAG]] == CODE
    if not code.any() or code.all():
        return code & keep
    prose = np.flatnonzero(~code)
    after = np.searchsorted(prose, np.flatnonzero(code))
    beside = keep[prose[np.maximum(after - 1, 0)]] | keep[prose[np.minimum(after, len(prose) - 1)]]
    found = np.zeros(len(keep), bool)
    found[code] = beside
    return found
