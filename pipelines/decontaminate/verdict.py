"""From matches to verdicts: what is common in documents is no evidence, the rest is weighed item by item and shown.

An n-gram of several documents is a phrase ("we hold these truths to be self-evident ..."), and flagging phrases is the known failure of such
tools. But an item that leaked several times has n-grams of several documents too. What tells the two apart is the rest of the item: a phrase
is a small part of it and found more often. So an n-gram is ignored where it is in `common_documents` documents more than
1 - PHRASE_SHARE of its item's n-grams are: whatever leaked, however often, any larger part of an item is still found. A
reference is clean by declaration: what is common there is ignored everywhere.
"""

import functools
import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.arrow_files import read_arrow, write_arrow
from pipelines.decontaminate.index import Index, load_index
from pipelines.decontaminate.match import batches, text_column
from pipelines.decontaminate.recipe import DecontaminateRecipe
from pipelines.stage import PartOutput

REASON = "contaminated.ngram"
SPAN_CHARACTERS = 300  # of the matching text shown in `detail`
PHRASE_SHARE = 0.2  # of an item's n-grams: famous sentences in benchmark items are 1 % to 12 % of them, source passages from 13 % up (docs/log.md)


def write_common(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """`common.arrow`: in how many documents of the data and of the reference each n-gram of the index is found (int64 `data`, `reference`)."""
    index = load_index(tuple(payload["index"]), payload["digest"])
    columns = {}
    for name in ("data", "reference"):
        columns[name] = np.zeros(index.size, np.int64)
        for uri in payload[name]:
            counts = read_arrow(uri)
            columns[name][counts["gram"].to_numpy()] += counts["documents"].to_numpy()
        output.count(**{f"grams_found_in_{name}": int((columns[name] > 0).sum())})
    write_arrow(output, "common.arrow", columns)


class Evidence(NamedTuple):
    """The pairs of n-gram and item that count, in the order of the index."""

    index: Index
    counts: np.ndarray  # bool [pairs]
    grams_per_item: np.ndarray  # int64 [items], of those that count


@functools.lru_cache(maxsize=2)  # once a process, not once a part
def _load_evidence(index_files: tuple[str, ...], index_digest: str, common: str, digest: str, limit: int, whole: bool) -> Evidence:
    """`limit`: common_documents; `whole`: items are looked for whole, and the same problem many times is a leak many times, not a phrase."""
    index = load_index(index_files, index_digest)
    table, sharers = read_arrow(common), np.diff(index.bounds)
    in_data, in_reference = (np.repeat(table[name].to_numpy(), sharers) for name in ("data", "reference"))
    counts = in_reference < limit
    if not whole:
        counts &= in_data - _usual(index, in_data) < limit
    return Evidence(index, counts, np.bincount(index.items[counts], minlength=len(index.ids)))


def _usual(index: Index, documents: np.ndarray) -> np.ndarray:
    """For each pair, how many documents hold all but the most frequent PHRASE_SHARE of its item's n-grams: int64 [pairs]."""
    grams = np.bincount(index.items, minlength=len(index.ids))
    rising = documents[np.lexsort((documents, index.items))]
    place = np.cumsum(grams) - grams + np.ceil((1 - PHRASE_SHARE) * grams).astype(np.int64) - 1
    usual = np.zeros(grams.size, np.int64)
    usual[grams > 0] = rising[place[grams > 0]]
    return usual[index.items]


class Hit(NamedTuple):
    """An item found in a document."""

    item: int
    coverage: float  # share of the item's n-grams that count
    begin: int  # the longest run of matching bytes
    end: int


def best_hit(evidence: Evidence, grams: np.ndarray, begins: np.ndarray, ends: np.ndarray, threshold: float) -> Hit | None:
    """The item of the greatest coverage at or above the threshold (ties: the longer span, then the earlier item).

    grams, begins, ends: a document's matches, int64 [M], in the order of the text.
    """
    index = evidence.index
    places: dict[int, list[int]] = {}
    for match, gram in enumerate(grams.tolist()):
        for pair in range(index.bounds[gram], index.bounds[gram + 1]):
            if evidence.counts[pair]:
                places.setdefault(int(index.items[pair]), []).append(match)
    best: tuple[tuple[float, int, int], Hit] | None = None
    for item, matches in places.items():
        coverage = np.unique(grams[matches]).size / int(evidence.grams_per_item[item])
        if coverage < threshold:
            continue
        begin, end = _longest_run(begins[matches], ends[matches])
        rank = (coverage, end - begin, -item)
        if best is None or rank > best[0]:
            best = (rank, Hit(item, coverage, begin, end))
    return best[1] if best else None


def _longest_run(begins: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """The longest stretch covered by matches that overlap or touch."""
    reach = np.maximum.accumulate(ends)
    first = np.flatnonzero(np.concatenate(([True], begins[1:] > reach[:-1])))
    last = np.append(first[1:] - 1, begins.size - 1)
    longest = int(np.argmax(reach[last] - begins[first]))
    return int(begins[first[longest]]), int(reach[last[longest]])


def write_verdicts(payload: dict, recipe: DecontaminateRecipe, output: PartOutput) -> None:
    """Split a part into clean and contaminated rows."""
    evidence = _load_evidence(
        tuple(payload["index"]), payload["digest"], payload["common"], payload["common_digest"], recipe.common_documents, recipe.n is None
    )
    table = read_arrow(payload["matches"])
    matches = {name: table[name].to_numpy() for name in table.column_names}
    bounds = np.flatnonzero(np.diff(matches["row"], prepend=-1, append=-1)) if table.num_rows else np.zeros(1, np.int64)
    hits: dict[int, Hit] = {}
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        hit = best_hit(evidence, *(matches[name][begin:end] for name in ("gram", "begin", "end")), recipe.coverage)
        if hit:
            hits[int(matches["row"][begin])] = hit
    first = 0
    for rows in batches(payload["part"], recipe.text):
        here = [row for row in range(rows.num_rows) if first + row in hits]
        texts = text_column(rows[recipe.text]) if here else None
        details = [_detail(hits[first + row], texts[row].as_py(), evidence.index) for row in here]
        flagged = np.zeros(rows.num_rows, bool)
        flagged[here] = True
        first += rows.num_rows
        dirty = rows.filter(pa.array(flagged))
        dirty = dirty.drop_columns([name for name in ("reason", "detail") if name in dirty.column_names])
        dirty = dirty.append_column("reason", pa.repeat(REASON, dirty.num_rows)).append_column("detail", pa.array(details, pa.string()))
        output.read(rows.num_rows)
        output.write(rows.filter(pa.array(~flagged)), dirty)


def _detail(hit: Hit, text: str, index: Index) -> str:
    """What a person needs to judge: the item, how much of it, where in the text (bytes of UTF-8), both wordings."""
    span = text.encode()[hit.begin : hit.end].decode()
    shown = span if len(span) <= SPAN_CHARACTERS else span[:SPAN_CHARACTERS] + "…"
    facts = {"item": index.ids[hit.item], "coverage": round(hit.coverage, 4), "begin": hit.begin, "end": hit.end, "span": shown}
    return json.dumps({**facts, "item_text": index.texts[hit.item]}, ensure_ascii=False)
