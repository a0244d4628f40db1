"""From token shards to batches: the order is a function of (seed, plan, step), the state is one integer."""

from pipelines.loader.batch import POSITION, ROW, SOURCE, SPAN_DOCUMENT, SPAN_LENGTH, SPAN_OFFSET, SPAN_SHARD, Batch, Span
from pipelines.loader.stream import TokenStream
from pipelines.loader.supply import ShardSupply, plan_over

__all__ = [
    "POSITION", "ROW", "SOURCE", "SPAN_DOCUMENT", "SPAN_LENGTH", "SPAN_OFFSET", "SPAN_SHARD", "Batch", "ShardSupply", "Span", "TokenStream", "plan_over",
]
