"""The part of the report about lineage: which datasets, shards and models there are, and what each was made from."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows.report.lineage_graph import Node, draw
from pipelines.dataset import Dataset
from pipelines.shardset import ShardSet

# folder: (kind, what a row is called, what it was made from)
DATASETS = {
    "curated": ("data", "documents", ("crawl",)),
    "deduped": ("data", "documents", ("curated",)),
    "text": ("data", "documents", ("deduped",)),
    "heldout/text": ("measure", "documents held out", ("deduped",)),
    "problems": ("synthetic", "problems", ()),
    "heldout/problems": ("measure", "problems held out", ()),
    "generated": ("synthetic", "accepted solutions", ("sft",)),
}
SHARDS = {"shards-1": ("text", "problems", "tokenizer"), "shards-2": ("text", "problems", "generated", "tokenizer")}
RUNS = {"pretrain": ("shards-1",), "sft": ("pretrain", "problems"), "continued": ("sft", "shards-2"), "rl": ("continued",)}


def graph(folder: Path) -> Markup | None:
    """The graph of what the folder holds so far."""
    nodes = _nodes(folder)
    return draw(nodes) if nodes else None


def digests(folder: Path) -> dict[str, str]:
    """Name -> digest of everything that is finished: what two runs are compared by."""
    return {node.name: node.digest for node in _nodes(folder) if node.digest}


def _nodes(folder: Path) -> list[Node]:
    nodes = []
    crawl = _json(folder / "crawl.json")
    if crawl:
        nodes.append(Node("crawl", "data", f"{len(crawl['files']):,} files, {crawl['bytes'] / 1e6:,.1f} MB", ""))
    for name, (kind, unit, parents) in DATASETS.items():
        if Dataset.exists(str(folder / name)):
            dataset = Dataset.open(str(folder / name))
            nodes.append(Node(name, kind, f"{dataset.rows:,} {unit}", dataset.digest, parents))
    tokenizer = _json(folder / "tokenizer" / "done.json")
    if tokenizer:
        nodes.append(Node("tokenizer", "data", f"{tokenizer['tokens']:,} tokens", tokenizer["digest"], ("text", "problems")))
    for name, parents in SHARDS.items():
        if (folder / name / "manifest.json").is_file():
            shards = ShardSet.open(str(folder / name))
            sources = {*shards.sources, "tokenizer"}
            nodes.append(
                Node(
                    name,
                    "shards",
                    f"{sum(shards.tokens.values()):,} tokens",
                    shards.manifest["dataset_digest"],
                    tuple(parent for parent in parents if parent in sources),
                )
            )
    for name, parents in RUNS.items():
        done = _json(folder / name / "done.json")
        if done:
            nodes.append(Node(name, "model", f"{done['steps']:,} steps", done["model_digest"], parents))
    return nodes


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
