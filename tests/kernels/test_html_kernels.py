"""The tag stream and its blocks against lxml's tree on random well-formed pages, and against nothing but the absence of crashes on noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import html as lxml_html

from kernels import html_blocks as html
from kernels.html_tokens import fnv, table
from pipelines.extract.layout import lay_out
from pipelines.extract.vocabulary import TAG_ID

WORDS = st.text("abcXYZäß中 \n", min_size=1, max_size=12)
LEAVES = WORDS.map(lambda words: f"<p>{words}</p>") | WORDS.map(lambda words: f"<h2 class='a>b' id=x>{words}</h2>") | st.just("<!-- <p>no</p> --><br/>")
PAGES = st.recursive(LEAVES, lambda inner: st.tuples(st.sampled_from(["div", "section", "ul", "blockquote"]), st.lists(inner, max_size=4)).map(lambda e: f"<{e[0]}>{''.join(e[1])}</{e[0]}>"), max_leaves=20)


def texts(page: str) -> list[list[str]]:
    layout = lay_out(page.encode())
    found = []
    for block in layout.blocks:
        events = layout.events[block[html.FIRST] : block[html.END]]
        found.append(b"".join(layout.html[start:end] for tag, start, end in events if tag == 0).decode().split())
    return found


@settings(max_examples=60, deadline=None)
@given(PAGES)
def test_blocks_are_the_trees_paragraphs(page):
    tree = lxml_html.fromstring(f"<body>{page}</body>")
    wanted = [element.text_content().split() for element in tree.iter("p", "h2")]
    assert texts(f"<body>{page}</body>") == [words for words in wanted if words]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<", ">", "</", "<p", "<a href=x>", "'", '"', "=", "<!--", "-->", "<script>", "</script", "<td>", "</table>", "<pre>", "x", " ", "&", "\0"])).map("".join))
def test_noise_is_read_within_bounds_and_sums_agree(page):
    layout = lay_out(page.encode())
    assert np.all(layout.blocks[:, html.CHARACTERS] > 0)
    assert np.all(layout.sums[0, html.CHARACTERS :] == layout.blocks[:, html.CHARACTERS :].sum(axis=0))
    assert np.all(layout.nodes[1:, html.PARENT] < np.arange(1, len(layout.nodes)))


@pytest.mark.parametrize(
    ("page", "counts"),
    [
        ("<p>One, two. <a href=x>Three</a> <b>4</b>", {"WORDS": 4, "STOPS": 1, "ENDS_STOP": 0, "LINK_CHARACTERS": 5}),
        ("<p>It said: \u201cNo.\u201d", {"STOPS": 1, "ENDS_STOP": 1}),
        ("<p>It said:", {"STOPS": 0, "ENDS_STOP": 0}),
        ("<p><a name=x>not a link</p>", {"WORDS": 3, "LINK_CHARACTERS": 0}),
        ("<p>a&nbsp;b &amp; c&eacute;d", {"WORDS": 4, "CHARACTERS": 6}),
        ("<p>中文字、好。", {"WORDS": 2, "STOPS": 1, "ENDS_STOP": 1, "CHARACTERS": 6}),
    ],
)
def test_counts(page, counts):
    (block,) = lay_out(page.encode()).blocks
    assert {name: int(block[getattr(html, name)]) for name in counts} == counts


@pytest.mark.parametrize(
    ("block", "running"),
    [
        ("A line of print has some eighty characters, and a full stop says that it is a sentence.", True),
        ("A line of print has some eighty characters, and no full stop says that it is no sentence", False),
        ("A short line. Two.", False),
        ("<a href=x>A line of print has some eighty characters, and a full stop says that it is a</a> sentence, but mostly link.", False),
        ("漢字で書かれた文は文字が少ないが、言うことは少なくないのである。これも文。", True),
    ],
)
def test_running_text(block, running):
    (row,) = lay_out(f"<p>{block}".encode()).blocks
    assert bool(row[html.LONG]) == running


def test_unclosed_items_and_cells_are_siblings():
    layout = lay_out(b"<ul><li>a<li>b<ul><li>c</ul><li>d</ul><table><tr><td>e<td>f<tr><td>g</table>")
    depth = layout.nodes[layout.blocks[:, html.NODE], html.DEPTH]
    assert depth.tolist() == [2, 2, 4, 2, 3, 3, 3]


def test_tables_find_their_names():
    rows = table(TAG_ID)
    for name, value in TAG_ID.items():
        slot = fnv(name) & (len(rows) - 1)
        while int(rows[slot, 0]) != fnv(name):
            slot = (slot + 1) & (len(rows) - 1)
        assert int(rows[slot, 1]) == value
