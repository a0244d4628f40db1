"""Train the block classifier of `pipelines/extract` on the WCXB development set and write its weights.

    python benchmarks/extraction_training.py [--data FOLDER] [--out pipelines/extract/weights.npz]

A block is text where most of its words lie on the best alignment of the page's words with the ground truth's (longest common subsequence, runs of
words preferred). The second look is trained on first probabilities of pages the first model has not seen (two halves by host), or it would trust
them too much. `benchmarks/extraction.py` uses `fit` for its cross-validated figure. Needs scikit-learn (the test extra).
"""

import argparse
import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import numba
import numpy as np
from fastwarc import ArchiveIterator, WarcRecordType
from sklearn.ensemble import HistGradientBoostingClassifier

from kernels import html_blocks as html
from kernels.boosted_trees import Trees, probabilities
from kernels.html_tokens import TEXT
from pipelines.extract.charset import decode
from pipelines.extract.classifier import WEIGHTS, Model, save
from pipelines.extract.context import context
from pipelines.extract.features import features
from pipelines.extract.formulas import keep_formulas
from pipelines.extract.layout import Layout, lay_out

WORD = re.compile(r"\w+")
TREES, LEAVES, RATE = 100, 24, 0.1
LENGTH_POWER = 0.7  # a block weighs its words to this power: between "every block" and "every word"


@dataclass(frozen=True)
class Page:
    """A page with its ground truth (a row of the set's .gt.jsonl)."""

    url: str
    body: bytes
    content_type: str | None
    truth: dict

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""


def pages_of(data: Path, name: str) -> list[Page]:
    with gzip.open(data / f"extraction/{name}.gt.jsonl.gz", "rt", encoding="utf-8") as file:
        truth = {row["warc_uri"]: row for row in map(json.loads, file)}
    pages = []
    with open(data / f"extraction/{name}.warc.gz", "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True):
            url = record.headers["WARC-Target-URI"].strip("<>")
            if url in truth:
                pages.append(Page(url, record.reader.read(), record.http_headers.get("Content-Type"), truth[url]))
    return pages


def fold_of(host: str, folds: int) -> int:
    """A host's fold: pages of one site never stand on both sides."""
    return zlib.crc32(host.encode()) % folds


@dataclass(frozen=True)
class Example:
    """A page as the classifier sees it: features float32 [B, F], share of each block's words that are wanted, weight of each block."""

    host: str
    layout: Layout
    rows: np.ndarray
    wanted: np.ndarray
    weight: np.ndarray


def example(page: Page) -> Example | None:
    """None where the page has no text at all."""
    layout = lay_out(keep_formulas(decode(page.body, page.content_type)[0]).encode("utf-8", "replace"))
    if not len(layout.blocks):
        return None
    words = [WORD.findall(text.lower()) for text in _texts(layout)]
    numbers: dict[str, int] = {}
    have, want = (np.array([numbers.setdefault(word, len(numbers)) for word in some], np.int32) for some in ([w for ws in words for w in ws], _wanted(page)))
    matched = np.concatenate([[0], np.cumsum(_align(have, want))])
    lengths = np.array([len(some) for some in words])
    ends = np.cumsum(lengths)
    wanted = (matched[ends] - matched[ends - lengths]) / np.maximum(lengths, 1)
    weight = np.maximum(lengths, 1) ** LENGTH_POWER
    return Example(page.host, layout, features(layout), wanted, weight / weight.sum() * len(weight) ** 0.5)


def _wanted(page: Page) -> list[str]:
    return WORD.findall(page.truth["main_content"].lower())


def _texts(layout: Layout) -> list[str]:
    spans = ([(start, end) for tag, start, end in layout.events[block[html.FIRST] : block[html.END]] if tag == TEXT] for block in layout.blocks)
    return [unescape(b" ".join(layout.html[start:end] for start, end in span).decode("utf-8", "replace")) for span in spans]


@numba.njit(cache=True)
def _align(have, want):
    """bool [len(have)]: the words on the best alignment; a match scores .6, next to another 1.5, so that runs win over scattered "the"s."""
    rows, columns = have.size, want.size
    matched = np.zeros(rows, np.bool_)
    if rows * columns > 600_000_000:  # a table of a page's whole list against a book: membership will do
        known = set(want)
        for i in range(rows):
            matched[i] = have[i] in known
        return matched
    moves = np.zeros((rows + 1, columns + 1), np.uint8)  # 1: skip ours, 2: skip theirs, 3: match; +4: the match before it is adjacent
    best, diagonal = np.zeros(columns + 1, np.float32), np.full(columns + 1, -1e9, np.float32)
    for i in range(1, rows + 1):
        before, before_diagonal = np.float32(0), np.float32(-1e9)  # row i - 1, column j - 1
        for j in range(1, columns + 1):
            score, run = np.float32(-1e9), 0
            if have[i - 1] == want[j - 1]:
                score, run = before + np.float32(0.6), 0
                if before_diagonal + np.float32(1.5) >= score:
                    score, run = before_diagonal + np.float32(1.5), 4
            before, before_diagonal, diagonal[j] = best[j], diagonal[j], score
            move = 1
            if best[j - 1] > best[j]:
                best[j], move = best[j - 1], 2
            if score >= best[j]:
                best[j], move = score, 3
            moves[i, j] = move + run
    i, j, run = rows, columns, False
    while i > 0 and j > 0:
        move = moves[i, j]
        if run or move & 3 == 3:
            matched[i - 1] = True
            run = move & 4 > 0
            i, j = i - 1, j - 1
        elif move & 3 == 1:
            i -= 1
        else:
            j -= 1
    return matched


def fit(examples: Sequence[Example]) -> Model:
    """Both looks, from pages with ground truth. Deterministic."""
    halves = [fold_of(f"half {each.host}", 2) for each in examples]
    rows: list[np.ndarray] = [each.rows for each in examples]
    contexts: dict[int, np.ndarray] = {}
    for half in (0, 1):
        other = _fit([examples[i] for i in range(len(rows)) if halves[i] != half], [rows[i] for i in range(len(rows)) if halves[i] != half])
        contexts |= {i: context(examples[i].layout, probabilities(other, rows[i])) for i in range(len(rows)) if halves[i] == half}
    second = _fit(examples, [np.concatenate([rows[i], contexts[i]], axis=1) for i in range(len(rows))])
    return Model(_fit(examples, rows), second)


def _fit(examples: Sequence[Example], rows: Sequence[np.ndarray]) -> Trees:
    wanted, weight = (np.concatenate([getattr(each, name) for each in examples]) for name in ("wanted", "weight"))
    weight = weight / weight.mean() * np.maximum(np.abs(2 * wanted - 1), 0.1)  # a block half wanted teaches little
    classifier = HistGradientBoostingClassifier(
        max_iter=TREES, max_leaf_nodes=LEAVES, learning_rate=RATE, l2_regularization=2.0, min_samples_leaf=20, max_features=0.25, random_state=0
    )
    classifier.fit(np.concatenate(rows), wanted > 0.5, sample_weight=weight)
    return _flatten([tree for (tree,) in classifier._predictors], float(classifier._baseline_prediction.item()))


def _flatten(trees: Sequence, bias: float) -> Trees:
    offsets = np.cumsum([0, *(len(tree.nodes) for tree in trees)])
    nodes = np.concatenate([tree.nodes for tree in trees])
    leaf = nodes["is_leaf"].astype(bool)
    shift = np.repeat(offsets[:-1], np.diff(offsets))
    return Trees(
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int16),
        threshold=np.where(leaf, nodes["value"], nodes["num_threshold"]).astype(np.float32),
        left=np.where(leaf, -1, nodes["left"] + shift).astype(np.int32),
        right=np.where(leaf, -1, nodes["right"] + shift).astype(np.int32),
        roots=offsets[:-1].astype(np.int32),
        bias=bias,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRISTMILL_DATA", "../shared/data")), help="folder that holds extraction/")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    examples = [each for page in pages_of(arguments.data, "wcxb-dev") if (each := example(page)) is not None]
    save(fit(examples), arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, from {len(examples)} pages, {sum(len(each.rows) for each in examples):,} blocks")


if __name__ == "__main__":
    main()
