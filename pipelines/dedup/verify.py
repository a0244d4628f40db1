"""Candidates that a band key made, held to the true Jaccard similarity of their shingle sets.

    requests   which documents' sets are needed where: a pair is judged in the bucket of its left document
    sets       each input part again: the sets of its requested documents, sent there (those of earlier crawls lie in the index)
    verified   bucket by bucket: edges of the pairs that are alike enough

Only verified edges reach the components, so a cluster is a chain of pairs each of which is alike: two documents whose band keys met by
chance join nobody. A bucket holds the sets of its left documents and, of the right ones, those of one input part at a time.
"""

import numpy as np
import pyarrow as pa

from kernels.jaccard import jaccards, ngram_sets
from pipelines.dedup.components import contract, send_edges
from pipelines.dedup.exchange import ROW_BITS, bucket_of, column, files_of, part_of, read, receive, row_of, send
from pipelines.dedup.recipe import DedupRecipe, MinHashRecipe
from pipelines.dedup.signatures import read_texts
from pipelines.stage import PartOutput

SETS = pa.schema([("document", pa.uint64()), ("shingles", pa.large_list(pa.uint64()))])


def request_sets(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send each pair of the bucket once to the bucket that judges it, and each of its documents' input parts a request for its set."""
    table = receive(files_of(payload["pairs"]), payload["bucket"])
    pairs = np.unique(np.column_stack((column(table, "left"), column(table, "right"))), axis=0)
    left, right = (np.ascontiguousarray(side) for side in pairs.T)
    judges = payload["judges"]
    judge = bucket_of(left, judges)
    send(output, f"pairs-{payload['bucket']:05d}.arrow", pa.table({"left": left, "right": right}), judge, judges)
    requests = np.unique(np.column_stack((np.concatenate((left, right)), np.tile(judge.astype(np.uint64), 2))), axis=0)
    document, to = (np.ascontiguousarray(side) for side in requests.T)
    send(output, f"requests-{payload['bucket']:05d}.arrow", pa.table({"document": document, "judge": to}), part_of(document), payload["parts"])
    output.count(pairs=len(pairs), requests=len(requests))


def send_sets(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send the requested documents' shingle sets to the buckets that asked."""
    index, judges = payload["index"], payload["judges"]
    table = receive(files_of(payload["requests"]), index)
    asked = np.unique(np.column_stack((column(table, "document"), column(table, "judge"))), axis=0)
    document, judge = (np.ascontiguousarray(side) for side in asked.T)
    sets = SETS.empty_table()
    if document.size:
        wanted = np.unique(document)
        if payload["part"] is None:
            stored = read(payload["sets"])
            chosen = stored.take(np.searchsorted(column(stored, "row"), row_of(wanted)))["shingles"]
        else:
            chosen = sets_of(payload["part"], recipe.text, row_of(wanted), recipe.minhash)
        sets = pa.table({"document": document, "shingles": chosen.take(pa.array(np.searchsorted(wanted, document)))}).cast(SETS)
    send(output, f"sets-{index:05d}.arrow", sets, judge.astype(np.int64), judges)


def judge_pairs(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Edges of the pairs whose similarity reaches the recipe's `verify`."""
    bucket = payload["bucket"]
    table = receive(files_of(payload["pairs"]), bucket)
    left, right = column(table, "left"), column(table, "right")
    order = np.argsort(right, kind="stable")
    left, right = left[order], right[order]
    heads = np.unique(left)
    files = files_of(payload["sets"])
    head_document, head_values, head_bounds = _flat([_only(read(file, bucket), heads) for file in files])
    alike = np.zeros(left.size, bool)
    bounds = np.searchsorted(right, np.arange(len(files) + 1, dtype=np.uint64) << np.uint64(ROW_BITS))
    for file, begin, end in zip(files, bounds[:-1], bounds[1:], strict=True):
        if begin == end:
            continue
        document, values, starts = _flat([read(file, bucket)])
        similarities = np.empty(end - begin)
        here = slice(begin, end)
        jaccards(
            head_values, head_bounds, np.searchsorted(head_document, left[here]), values, starts, np.searchsorted(document, right[here]), similarities
        )
        alike[here] = similarities >= recipe.minhash.verify
    nodes, roots = contract(left[alike], right[alike])
    send_edges(output, f"edges-{bucket:05d}.arrow", nodes, roots, payload["buckets"])
    output.count(pairs=int(left.size), verified=int(alike.sum()))


def sets_of(part: str, name: str, rows: np.ndarray, minhash: MinHashRecipe) -> pa.Array:
    """Shingle sets of the given rows (sorted) of an input part: a list of sorted 64-bit hashes a row."""
    values, sizes, begin = [], [], 0
    for texts in read_texts(part, name):
        first, last = np.searchsorted(rows, (begin, begin + len(texts)))
        if first < last:
            flat, bounds = ngram_sets(texts.take(pa.array(rows[first:last] - begin)), minhash.n, minhash.normalisation)
            values.append(flat)
            sizes.append(np.diff(bounds))
        begin += len(texts)
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(sizes)))) if sizes else np.zeros(1, np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(np.concatenate(values) if values else [], pa.uint64()))


def _only(table: pa.Table, wanted: np.ndarray) -> pa.Table:
    return table.filter(pa.array(np.isin(column(table, "document"), wanted)))


def _flat(tables: list[pa.Table]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document [D] sorted, values uint64 [S], bounds int64 [D + 1]) of sets; parts come in order, and so do the documents of each."""
    table = pa.concat_tables(tables).combine_chunks()
    lists = pa.concat_arrays(table["shingles"].chunks) if table["shingles"].num_chunks else pa.array([], SETS.field("shingles").type)
    bounds = lists.offsets.to_numpy()
    return column(table, "document"), lists.values.to_numpy(), bounds
