"""What a person decides about text that several documents share: how long a piece, how often is too often, and which copy stays."""

from typing import Any, Literal

from pydantic import Field, model_validator

from kernels.ngrams import Normalisation
from pipelines.dedup.rank import Key
from pipelines.errors import UserError
from pipelines.recipe import Recipe

LENGTH = {"line": 1, "paragraph": 1, "sentence": 3, "byte": 100, "token": 50}  # C4's three sentences; Lee et al.'s 50 tokens, 100 bytes of GPT-2 tokens

# Published choices; sentence borders and normalisation are ours in all of them (see kernels/segments.py).
PRESETS: dict[str, dict[str, Any]] = {
    # Wenzek et al. 2020 (CCNet): paragraphs of one line, lower-cased, without accents and punctuation, numbers alike; the first stays.
    "ccnet": {"unit": "line", "min_words": 1, "count": "occurrences"},
    # Raffel et al. 2020 (C4): all but one of any three-sentence span that stands more than once.
    "c4": {"unit": "sentence", "length": 3, "min_words": 1, "count": "occurrences", "characters": True, "strip_marks": False, "fold_digits": False},
    # Llama team 2024 (Llama 3): lines that stand more than six times in a bucket of 30 million documents, all of them.
    "llama3": {"unit": "line", "min_words": 1, "min_count": 7, "count": "occurrences", "keep": "none"},
    # Lee et al. 2022, "Deduplicating training data makes language models better": every copy of 50 tokens that stand twice.
    "lee2022": {"unit": "token", "length": 50, "count": "occurrences", "keep": "none"},
    # The same by bytes, as Nemotron-CC has it: 100 bytes are about 50 tokens of GPT-2. One copy stays.
    "substrings": {"unit": "byte", "length": 100, "count": "occurrences"},
}


class SpanRecipe(Recipe):
    """Text shared across all inputs together: lines, paragraphs, runs of sentences, or exact substrings of bytes or tokens."""

    unit: Literal["line", "paragraph", "sentence", "byte", "token"] = Field("line", description="what a piece is made of; byte and token are exact substrings")
    length: int | None = Field(None, ge=1, description="units a piece: by default 1 line or paragraph, 3 sentences, 100 bytes, 50 tokens")
    min_words: int = Field(3, ge=1, description="shorter lines, paragraphs and sentence runs are left alone")
    characters: bool = Field(False, description="compare every character (case and white space aside) instead of words; not for bytes and tokens")
    strip_marks: bool = Field(True, description="read accented letters without their accents; not for bytes and tokens")
    fold_digits: bool = Field(True, description="read every number as 0; not for bytes and tokens")
    count: Literal["occurrences", "documents", "hosts"] = Field("documents", description="what is counted; `hosts` needs a column `host`")
    min_count: int = Field(2, ge=2, description="a piece counted so often is repeated")
    keep: Literal["first", "none"] = Field("first", description="of a repeated piece, one occurrence stays or none does")
    survivor: tuple[str, ...] = Field((), description="sort key ('-' descending, '?' may be absent): whose piece stays; ties go by the input's order")
    min_characters: int = Field(250, ge=1, description="an edited document with less left is rejected; 250: about the 50 words of datatrove's sentence dedup")
    max_removed: float = Field(1.0, gt=0, le=1, description="a document that would lose more than this share of its bytes is rejected")
    text: str = Field("text", description="the column that holds the text")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "preset" not in value:
            return value
        name = value["preset"]
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: {', '.join(PRESETS)}")
        return {**PRESETS[name], **{key: entry for key, entry in value.items() if key != "preset"}}

    @property
    def width(self) -> int:
        """Units a piece."""
        return self.length or LENGTH[self.unit]

    @property
    def exact(self) -> bool:
        """Whether pieces are substrings, found by windows, and not cut at borders."""
        return self.unit in ("byte", "token")

    @property
    def family(self) -> str:
        """The first half of the reasons."""
        return "repeated_substrings" if self.exact else f"repeated_{self.unit}s"

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation("characters" if self.characters else "words", self.strip_marks, self.fold_digits)

    @property
    def keys(self) -> list[Key]:
        return [Key.parse(key) for key in self.survivor]

    def check_tokenizer(self, tokenizer: str | None) -> None:
        """Raises UserError: tokens were asked for without a tokenizer, or a tokenizer was given in vain."""
        if self.unit == "token" and tokenizer is None:
            raise UserError("unit token needs a tokenizer (--tokenizer FILE)")
        if self.unit != "token" and tokenizer is not None:
            raise UserError(f"a tokenizer is of use to unit token only, this is {self.unit}")
