"""Connected components of a graph that no process can hold: alternating large-star and small-star steps over files.

Kiveris et al. 2014, "Connected components in MapReduce and beyond". Each step groups edges by node (one bucket of nodes at a time) and
points neighbours at the smallest one seen; components shrink to stars around their smallest document in a handful of rounds.
A graph is done when every node has either only larger neighbours (a centre) or exactly one, smaller (a leaf). Ordinary union-find
does the work inside a bucket (`contract`), so a corpus of one bucket needs no round at all.
"""

import numba
import numpy as np
import pyarrow as pa

from pipelines.dedup.exchange import bucket_of, column, files_of, part_of, receive, send
from pipelines.dedup.recipe import DedupRecipe
from pipelines.stage import PartOutput


@numba.njit(cache=True, nogil=True)
def _roots(left, right, count):
    """Root (smallest member) of each node 0..count-1 of the graph with edges left[i]-right[i]: union by smaller, path halving."""
    parent = np.arange(count)
    for i in range(left.size):
        a, b = left[i], right[i]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for node in range(count):  # a parent is never larger than its child, so ascending order settles all
        parent[node] = parent[parent[node]]
    return parent


def contract(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Components of edges given in memory, as stars: (node, smallest document of its component) for every node but the smallest.

    left, right: document numbers uint64 [E]. Nodes come sorted.
    """
    nodes, index = np.unique(np.concatenate((left, right)), return_inverse=True)
    roots = _roots(index[: left.size], index[left.size :], nodes.size)
    leaf = roots != np.arange(nodes.size)
    return nodes[leaf], nodes[roots[leaf]]


def send_edges(output: PartOutput, name: str, nodes: np.ndarray, others: np.ndarray, buckets: int) -> None:
    """Send each edge to the buckets of both its ends."""
    node, other = np.concatenate((nodes, others)), np.concatenate((others, nodes))
    send(output, name, pa.table({"node": node, "other": other}), bucket_of(node, buckets), buckets)


def large_star(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Connect every larger neighbour of a node to the smallest of its neighbourhood. Counts nodes that are not settled.

    When no node of any bucket is unsettled, what this step wrote are the stars of the answer: (document, centre).
    """
    node, other, starts = _neighbours(payload)
    smallest = np.minimum(np.minimum.reduceat(other, starts), node[starts]) if node.size else other
    groups = np.repeat(np.arange(starts.size), np.diff(np.append(starts, node.size)))
    larger = other > node
    has_larger = np.bincount(groups[larger], minlength=starts.size)
    has_smaller = np.bincount(groups[~larger], minlength=starts.size)
    unsettled = ((has_larger > 0) & (has_smaller > 0)) | (has_smaller > 1)
    _send_directed(output, payload, other[larger], smallest[groups][larger])
    output.count(unsettled=int(unsettled.sum()))


def small_star(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Connect a node and its smaller neighbours to the smallest of them."""
    node, other, starts = _neighbours(payload)  # directed: every other < node
    smallest = np.minimum.reduceat(other, starts) if node.size else other
    groups = np.repeat(np.arange(starts.size), np.diff(np.append(starts, node.size)))
    rest = other != smallest[groups]
    nodes = np.concatenate((node[starts], other[rest])) if node.size else node
    roots = np.concatenate((smallest, smallest[groups][rest])) if node.size else node
    send_edges(output, f"edges-{payload['bucket']:05d}.arrow", nodes, roots, payload["buckets"])


def send_labels(payload: dict, recipe: DedupRecipe, output: PartOutput) -> None:
    """Send (document, centre) to the document's input part; the centre belongs to its own cluster."""
    table = receive(files_of(payload["stars"]), payload["bucket"])
    node, centre = column(table, "node"), column(table, "other")
    centres = np.unique(centre)
    pairs = np.unique(np.column_stack((np.concatenate((node, centres)), np.concatenate((centre, centres)))), axis=0)
    document, label = (np.ascontiguousarray(values) for values in pairs.T)
    send(output, f"labels-{payload['bucket']:05d}.arrow", pa.table({"document": document, "label": label}), part_of(document), payload["parts"])


def _neighbours(payload: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(node, other, first row of each node), sorted, without repeats."""
    table = receive([file for edges in payload["edges"] for file in files_of(edges)], payload["bucket"])
    node, other = column(table, "node"), column(table, "other")
    order = np.lexsort((other, node))
    node, other = node[order], other[order]
    if node.size:
        fresh = np.concatenate(([True], (node[1:] != node[:-1]) | (other[1:] != other[:-1])))
        node, other = node[fresh], other[fresh]
    starts = np.flatnonzero(np.concatenate(([True], node[1:] != node[:-1]))) if node.size else np.empty(0, np.int64)
    return node, other, starts


def _send_directed(output: PartOutput, payload: dict, node: np.ndarray, other: np.ndarray) -> None:
    buckets = payload["buckets"]
    send(output, f"stars-{payload['bucket']:05d}.arrow", pa.table({"node": node, "other": other}), bucket_of(node, buckets), buckets)
