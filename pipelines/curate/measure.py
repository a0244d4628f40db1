"""Texts to signals as a recipe wants them: personal data masked, lines edited, and the measures that need a list or a model of the user's.

    mask -> measure -> [edit lines -> measure what is left] -> signals

Where a recipe edits lines, the families named before the edit's own family judge the page as extracted, those from it on judge what
the edit left, as C4's and RefinedWeb's pipelines do; a signal is measured where the first family that reads it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa
from pydantic import Field

from filters.bad_words import bad_words
from filters.blocklists import pinned, unpinned
from filters.classifier import FastText
from filters.code import code
from filters.edits import Edit, edit
from filters.families import FAMILIES
from filters.pages import Source
from filters.pii import Span, count_pii
from filters.signals import SOURCES, measure
from filters.toxicity import TOXIC, toxicity
from filters.urls import SOFT_LIMIT, UrlRules
from pipelines.errors import UserError
from pipelines.recipe import Recipe

SPANS = pa.list_(pa.struct([("kind", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))
_EDIT_FAMILIES = ("refinedweb", "c4", "c4_fineweb")


class UrlLists(Recipe):
    """Block lists by URI (plain or compressed; `datatrove:domains` and its like name the lists that the datatrove package carries)."""

    domains: tuple[str, ...] = Field((), description="lists of domains, which cover their subdomains (UT1's `domains`, hosts files)")
    addresses: tuple[str, ...] = Field((), description="lists of addresses without scheme, which cover what lies below them (UT1's `urls`)")
    hard: tuple[str, ...] = Field((), description="lists of words of which one in a URL refuses its page")
    soft: tuple[str, ...] = Field((), description="lists of words of which `soft_limit` different ones do")
    subwords: tuple[str, ...] = Field((), description="lists of words that refuse a page anywhere in its URL, punctuation left out")
    easylists: tuple[str, ...] = Field((), description="lists of rules in Adblock Plus's syntax (EasyList)")
    soft_limit: int = Field(SOFT_LIMIT, ge=1, description="different soft words that refuse a page")

    def pinned(self) -> "UrlLists":
        """The same lists with what stands in them. Raises ValueError when one cannot be read."""
        kinds = {"domains", "addresses", "hard", "soft", "subwords", "easylists"}
        return self.model_copy(update={kind: tuple(map(pinned, getattr(self, kind))) for kind in kinds})

    def load(self) -> UrlRules:
        return UrlRules.load(self.domains, self.addresses, self.hard, self.soft, self.subwords, self.easylists, self.soft_limit)


class BadWords(Recipe):
    """Lists of words in the form of LDNOOBW."""

    lists: str = Field(description="URI of a language's list, {language} standing for its code: lists/ldnoobw/{language}")
    keep_fraction: float = Field(0.0, ge=0, le=1, description="share of pages that stay whatever words they hold (mC4: 0.001), chosen by their text")


class Toxicity(Recipe):
    """A fastText classifier of sentences."""

    model: str = Field(description="path of the fastText file, e.g. Dolma's Jigsaw models")
    label: str = Field("__label__toxic", description="its label of toxic text")
    threshold: float = Field(TOXIC, ge=0, le=1, description="score from which a sentence is toxic")


class Measures(Recipe):
    """What a recipe adds to the signals that are always measured."""

    lines: Literal["", *_EDIT_FAMILIES] = Field(
        "", description="edit the text by the line rules of this family (c4, c4_fineweb, refinedweb), where it stands among the families; '' keeps texts whole"
    )
    bad_words: BadWords | None = Field(None, description="word lists for the family c4_bad_words")
    toxicity: Toxicity | None = Field(None, description="classifier for the family toxicity")
    tokenizer: str = Field("", description="path of the tokenizer.json that the family nemo_code counts tokens with; '' leaves its rule out")

    def pinned(self) -> "Measures":
        """The same lists and models with what stands in them. Raises ValueError when one cannot be read."""
        words, model = self.bad_words, self.toxicity
        return self.model_copy(
            update={
                "bad_words": words and words.model_copy(update={"lists": pinned(words.lists)}),
                "toxicity": model and model.model_copy(update={"model": pinned(model.model)}),
                "tokenizer": self.tokenizer and pinned(self.tokenizer),
            }
        )

    def problem(self, families: Sequence[str]) -> str:
        """What keeps these families from being measured, "" if nothing does."""
        if self.lines and self.lines not in families:
            return f"lines are edited where their family stands: name {self.lines} among the families"
        if "refinedweb" in families and self.lines != "refinedweb":
            return "the family refinedweb reads what its line rules removed: set lines to refinedweb"
        if "c4_bad_words" in families and not self.bad_words:
            return "the family c4_bad_words needs bad_words.lists"
        if "toxicity" in families and not self.toxicity:
            return "the family toxicity needs toxicity.model"
        return ""


@dataclass(frozen=True)
class Measured:
    """Texts [R] as they are to be stored, their signals, and where the edits were in the texts as extracted."""

    texts: list[str]
    signals: pa.StructArray
    edits: list[list[Edit]]


def measured(
    texts: Sequence[str], finds: Sequence[Sequence[Span]], languages: Sequence[str], scores: Sequence[float], recipe: Measures, families: Sequence[str]
) -> Measured:
    """Measure and edit masked texts. `finds` is the personal data in each, `families` the recipe's, in order.

    Raises:
        UserError: a list, model or tokenizer that the recipe names cannot be read.
    """
    try:
        sources = [*SOURCES, *_named_sources(recipe, "nemo_code" in families)]
    except ValueError as error:
        raise UserError(str(error)) from None
    given = count_pii(texts, finds)
    if not recipe.lines:
        return Measured(list(texts), measure(texts, languages, scores, sources, given), [[] for _ in texts])
    edited = edit(texts, recipe.lines)
    before = measure(texts, languages, scores, sources, given)
    after = measure(edited.texts, languages, scores, sources, given | edited.signals())
    place = list(families).index(recipe.lines)
    kept = {rule.signal for family in families[:place] for rule in FAMILIES[family]}
    columns = [(before if field.name in kept else after).field(field.name) for field in after.type]
    return Measured(edited.texts, pa.StructArray.from_arrays(columns, fields=list(after.type)), edited.edits)


def _named_sources(recipe: Measures, program_files: bool) -> list[Source]:
    sources = []
    if recipe.bad_words:
        sources.append(bad_words(recipe.bad_words.lists, recipe.bad_words.keep_fraction))
    if recipe.toxicity:
        sources.append(toxicity(_fasttext(recipe.toxicity.model, recipe.toxicity.label), recipe.toxicity.threshold))
    if program_files:
        sources.append(_code(recipe.tokenizer))
    return sources


@lru_cache(maxsize=4)
def _fasttext(path: str, label: str) -> FastText:
    return FastText(unpinned(path), label)


@lru_cache(maxsize=4)
def _code(tokenizer: str) -> Source:
    return code(unpinned(tokenizer))
