"""Crawl to shards: reading, extraction, curation, dedup, mixtures, tokenizing, loading, lineage.

Import the room you need (`from pipelines.dataset import Dataset`); this file stays empty so that no room pays for another.
"""
