"""Text that stands more than once inside documents: lines, paragraphs, sentence runs, exact substrings."""

from pipelines.dedup.spans.recipe import PRESETS, SpanRecipe
from pipelines.dedup.spans.run import dedup_spans

__all__ = ["PRESETS", "SpanRecipe", "dedup_spans"]
