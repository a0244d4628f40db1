"""What a person decides about duplicates: which kinds to look for, how alike is alike, and which copy stays."""

from typing import Any, Literal

from pydantic import Field, field_validator

from kernels.ngrams import Normalisation
from pipelines.recipe import Recipe


class MinHashRecipe(Recipe):
    """Shingles, permutations, bands. The defaults are FineWeb's. P(candidate | Jaccard s) = 1 - (1 - s^rows)^bands."""

    unit: Literal["words", "characters"] = "words"
    n: int = Field(5, ge=1, description="units a shingle")
    bands: int = Field(14, ge=1)
    rows: int = Field(8, ge=1, description="signature positions a band")
    bits: Literal[32, 64] = Field(64, description="low bits of a permutation's image that count")
    permutations: Literal["mersenne61", "affine64"] = "mersenne61"
    seed: int = Field(1, ge=0)
    strip_marks: bool = Field(True, description="read accented letters without their accents")
    fold_digits: bool = Field(True, description="read every number as 0")
    verify: float | None = Field(None, gt=0, le=1, description="candidates count only if the true Jaccard similarity of their shingle sets is at least this")
    heads: int = Field(
        8, ge=1, description="with verify: documents of one band key are compared with this many first ones of them; 1 is a star, more than the group all pairs"
    )

    @property
    def count(self) -> int:
        return self.bands * self.rows

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.unit, self.strip_marks, self.fold_digits)


# Published parameters. The word splitter is ours in all of them (see kernels/ngrams.py).
PRESETS: dict[str, dict[str, Any]] = {
    "fineweb": {"unit": "words", "n": 5, "bands": 14, "rows": 8, "bits": 64},  # FineWeb, FineWeb-2: datatrove's defaults
    "finepdfs": {"unit": "words", "n": 5, "bands": 32, "rows": 10, "bits": 64},  # FinePDFs
    "nemotron_cc": {"unit": "characters", "n": 24, "bands": 20, "rows": 13, "bits": 32, "strip_marks": False, "fold_digits": False},  # NeMo Curator
    "refinedweb": {"unit": "words", "n": 5, "bands": 450, "rows": 20, "bits": 64},  # Penedo et al. 2023
}


class ExactRecipe(Recipe):
    """Duplicates by equality."""

    url: bool = Field(True, description="same canonical URL; rows without a URL are never URL duplicates")
    text: bool = Field(True, description="same text, byte for byte")


class DedupRecipe(Recipe):
    """Duplicates across all inputs together."""

    exact: ExactRecipe = ExactRecipe()
    minhash: MinHashRecipe | None = Field(MinHashRecipe(), description="a preset's name, a mapping (with `preset` to start from one), or null")
    survivor: tuple[str, ...] = Field(
        ("-quality_bucket?", "-text_bytes", "-captured_at?"),
        description="sort key, a cluster's first row stays: columns (dotted into structs) or text_bytes; '-' sorts descending, '?' allows absence",
    )
    url_survivor: tuple[str, ...] = Field(("-captured_at?", "-text_bytes"), description="the same for captures of one URL: by default the newest")
    text: str = Field("text", description="the column that holds the text")
    buckets: int | None = Field(None, ge=1, description="partitions of the global steps; by default one per 4 million keys")

    @field_validator("minhash", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if isinstance(value, dict) and "preset" in value:
            name = value["preset"]
            if name not in PRESETS:
                raise ValueError(f"unknown MinHash preset {name!r}: {', '.join(PRESETS)}")
            return {**PRESETS[name], **{key: entry for key, entry in value.items() if key != "preset"}}
        return value

    @field_validator("survivor", "url_survivor")
    @classmethod
    def _named(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            if not key.removeprefix("-").removesuffix("?"):
                raise ValueError(f"{key!r} names no column")
        return keys
