"""Per-language thresholds and stop words: one YAML file a language, named by its ISO 639-3 code."""

from filters.thresholds.load import Thresholds, languages, of

__all__ = ["Thresholds", "languages", "of"]
