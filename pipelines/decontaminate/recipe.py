"""What counts as a leak: n-gram presets as published, and what is too ordinary to be evidence."""

from typing import Any, Literal

from pydantic import Field, model_validator

from kernels.ngrams import Normalisation
from pipelines.benchmark_items import BenchmarkFormat
from pipelines.recipe import Recipe

PRESETS: dict[str, dict[str, Any]] = {
    "ngram13": {"n": 13, "coverage": 0.0, "min_units": 8},  # GPT-3 (Brown et al. 2020, appendix C): any shared 13-gram
    "ngram8": {"n": 8, "coverage": 0.7, "min_units": 8},  # PaLM (Chowdhery et al. 2022, section 8): 70 % of an item's 8-grams
    # GPT-4 (OpenAI 2023, appendix C) compares runs of 50 letters and digits, about nine words; as with nine words, one run alone is often a phrase.
    "letters50": {"unit": "letters", "n": 41, "stride": 10, "coverage": 0.7, "min_units": 50},
    "item": {"n": None, "coverage": 1.0, "min_units": 3, "symbols": True, "ordinary_words": 0.0},  # the whole item, operators included: generated problems
}


class DecontaminateRecipe(Recipe):
    """What counts as a leak. `preset` fills in published values; keys beside it win."""

    unit: Literal["words", "letters"] = Field("words", description="what n-grams are made of; letters (and digits) see through broken words")
    n: int | None = Field(13, ge=2, description="units an n-gram; null: whole items only")
    stride: int = Field(1, ge=1, description="index every so many n-grams of an item: any shared run of n + stride - 1 units is still found, in less memory")
    coverage: float = Field(0.0, ge=0, le=1, description="least share of an item's n-grams that must occur; 0: one n-gram is enough")
    min_units: int = Field(8, ge=1, description="items shorter than this cannot be told from ordinary language and are not looked for")
    symbols: bool = Field(False, description="operator signs are words (mathematics, code)")
    common_items: int = Field(10, ge=1, description="n-grams of more items than this are ignored")
    ordinary_words: float = Field(0.005, ge=0, le=1, description="n-grams without a word that is rarer than this among the items are ignored; 0: none is")
    reference: tuple[str, ...] = Field((), description="datasets known to be clean: n-grams common there are ignored")
    common_documents: int = Field(2, ge=1, description="n-grams in so many documents more than the rest of their item are phrases and ignored")
    text: str = Field("text", description="the column to check; a list (chat messages) is read as one text")
    formats: tuple[BenchmarkFormat, ...] = Field((), description="fields of benchmark files; the first entry that fits a file is taken")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and "preset" in values:
            name = values["preset"]
            if name not in PRESETS:
                raise ValueError(f"unknown decontamination preset {name!r}: {', '.join(PRESETS)}")
            return {**PRESETS[name], **{key: value for key, value in values.items() if key != "preset"}}
        return values

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(unit=self.unit, fold_digits=False, symbols=self.symbols, loose=True)
