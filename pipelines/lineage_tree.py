"""A trace as a tree for the screen."""

from typing import Any

from rich.text import Text
from rich.tree import Tree

from pipelines.lineage import Document, Trace

SPAN_TEXT = 120  # characters of a span shown


def tree(trace: Trace) -> Tree:
    """A `pipelines.lineage.Trace` as a rich tree."""
    position = "" if trace.token is None else f", token {trace.token} {trace.token_text!r}"
    root = Tree(Text(f"step {trace.step}, sample {trace.sample}{position} of {trace.shards}", style="bold"))
    for traced in trace.spans:
        span = traced.span
        where = f"{span.source}, {span.shard} document {span.document}, from its token {span.doc_offset}"
        branch = root.add(Text(f"tokens {span.position} to {span.position + span.length}: {where}"))
        branch.add(Text(_short(traced.text), style="italic"))
        if traced.document is None:
            branch.add(Text(f"document {span.document_id}: {traced.missing}", style="red"))
        else:
            _document(branch, traced.document)
    return root


def _document(branch: Tree, document: Document) -> None:
    node = branch.add(Text(f"document {document.id}", style="bold"))
    if document.stations:
        _stations(node, document)
    for title, values in (("duplicates", document.cluster), ("record", document.record), ("made by", document.made_by), ("facts", document.facts)):
        if values:
            _mapping(node.add(Text(title, style="cyan")), values)
    if document.signals:
        node.add(Text("signals  ", style="cyan").append(_inline(document.signals), style="default"))
    if document.decisions:
        node.add(Text("decisions  ", style="cyan").append(_inline(document.decisions), style="default"))
    if document.parents:
        parents = node.add(Text("parents", style="cyan"))
        for parent in document.parents:
            _document(parents, parent)


def _stations(node: Tree, document: Document) -> None:
    line = Text("datasets  ", style="cyan")
    for number, station in enumerate(document.stations):
        state = "" if station.found else " (gone)"
        line.append(f"{' <- ' if number else ''}{station.name}{state}{' (changed since)' if station.changed else ''}", style="default")
    node.add(line)


def _mapping(node: Tree, values: dict[str, Any]) -> None:
    for key, value in values.items():
        node.add(Text(f"{key}  ", style="dim").append(_inline(value), style="default"))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "; ".join(map(_inline, value))
    return _short(str(value))


def _short(text: str) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= SPAN_TEXT else text[: SPAN_TEXT - 1] + "…"
