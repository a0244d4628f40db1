"""Extraction: one page's bytes -> its main text and what it says about itself."""

from pipelines.extract.page import Extraction, extract

__all__ = ["Extraction", "extract"]
