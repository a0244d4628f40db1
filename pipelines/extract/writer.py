"""Chosen blocks of a page -> its text."""

from html import unescape

import numpy as np

from kernels.html_text import write
from pipelines.extract.layout import Layout
from pipelines.extract.vocabulary import ROLES, TRAITS


def write_text(page: Layout, keep: np.ndarray) -> str:
    """The blocks of `keep` (bool [B]) as text, as the page spaces it."""
    out = np.empty(2 * len(page.html) + 64 * len(keep) + 64, np.uint8)
    places = (page.items, page.cells, page.rows, page.lists, page.order)
    length = write(page.data, page.events, page.nodes, page.blocks, keep, TRAITS, ROLES, *places, out)
    text = out[:length].tobytes().decode("utf-8", "replace")
    return unescape(text) if "&" in text else text
