"""What is kept of a crawl, as a recipe: rule families and their thresholds, rules of one's own, block lists, datatrove's readers and filters as steps."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from filters import datatrove_filters
from filters.expressions import OwnRule, own_rule
from filters.families import FAMILIES
from filters.licence import CLASSES
from filters.pii import STAND_INS
from filters.rules import Bound, Rule
from filters.signals import SIGNAL_TYPE
from pipelines.curate.measure import Measures, UrlLists
from pipelines.read import datatrove_readers
from pipelines.read.parts import PART_BYTES
from pipelines.read.record import MAX_BODY
from pipelines.recipe import Recipe


class Threshold(Recipe):
    """A rule's bound in a recipe; both ends open switches the rule off."""

    min: float | None = None
    max: float | None = None


class OwnRuleText(Recipe):
    """A rule of the recipe's own: a page stays where the expression holds (see `filters.expressions`)."""

    name: str = Field(description='"family.rule", the reason of the pages it refuses')
    keep: str = Field(description="comparisons of signals, numbers and their sums and products, joined by and, or, not")

    @model_validator(mode="after")
    def _parses(self) -> "OwnRuleText":
        if any(rule.reason == self.name for family in FAMILIES.values() for rule in family):
            raise ValueError(f"rule {self.name} exists already; set its threshold, or take another name")
        self.parsed()
        return self

    def parsed(self) -> OwnRule:
        return own_rule(self.name, self.keep, SIGNAL_TYPE.names)


class DatatroveStep(Recipe):
    """One of datatrove's own filters by class name, or another by module.Class, and its arguments."""

    filter: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _loads(self) -> "DatatroveStep":
        datatrove_filters.load(self.filter, self.params)
        return self


class DatatroveReader(Recipe):
    """One of datatrove's own readers of files, by class name and arguments."""

    reader: str
    params: dict[str, Any] = {}
    html: bool = Field(False, description="its documents' text is HTML still to be extracted, as WarcReader's is")

    @model_validator(mode="after")
    def _builds(self) -> "DatatroveReader":
        datatrove_readers.check(self.reader, self.params)
        return self


class CurateRecipe(Recipe):
    """What is kept of a crawl. The defaults are the families' published thresholds."""

    families: tuple[str, ...] = Field(
        ("language", "gopher_repetition", "gopher_quality", "c4", "fineweb"), description="rule families, in the order in which they are applied"
    )
    rules: tuple[OwnRuleText, ...] = Field(
        (), description='rules of your own over the signals, applied after the families: {name: my.rule, keep: "digits <= 0.2 and words >= 30"}'
    )
    thresholds: dict[str, Threshold] = Field({}, description='bounds that replace published ones, by "family.rule" or "family"')
    datatrove_reader: DatatroveReader | None = Field(
        None, description="read the input files with a datatrove reader: {reader: CLASS, params: {...}, html: false}; files are then not split"
    )
    datatrove: tuple[DatatroveStep, ...] = Field((), description="datatrove filters applied after the families, in order: {filter: CLASS, params: {...}}")
    languages: tuple[str, ...] = Field((), description="lid.176 codes to keep; empty keeps every language")
    licenses: tuple[Literal[*CLASSES], ...] = Field((), description="licence classes to keep (see license_class); empty keeps every page")
    mask: tuple[Literal[*STAND_INS], ...] = Field(("emails", "ips"), description="personal data replaced by stand-ins, as FineWeb does")
    measures: Measures = Field(Measures(), description="line edits, and the lists and models that some families need")
    urls: UrlLists = Field(UrlLists(), description="block lists of domains, addresses and words, by URI")
    block_domains: tuple[str, ...] = Field((), description="domains whose pages, and whose subdomains' pages, are refused")
    block_words: tuple[str, ...] = Field((), description="words of which one in a URL refuses its page")
    max_body: int = Field(MAX_BODY, gt=0, description="bytes of an inflated body beyond which a page is refused unread")
    part_bytes: int = Field(PART_BYTES, ge=65_536, description="stored bytes of input a part")

    @field_validator("families")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in names if name not in FAMILIES]:
            raise ValueError(f"no rule family {unknown[0]}; known: {', '.join(FAMILIES)}")
        return names

    @model_validator(mode="after")
    def _measurable(self) -> "CurateRecipe":
        if problem := self.measures.problem(self.families):
            raise ValueError(problem)
        return self

    @field_validator("thresholds")
    @classmethod
    def _exists(cls, thresholds: dict[str, Threshold]) -> dict[str, Threshold]:
        known = set(FAMILIES) | {rule.reason for family in FAMILIES.values() for rule in family}
        if unknown := [name for name in thresholds if name not in known]:
            raise ValueError(f"no rule {unknown[0]} to set a threshold of")
        return thresholds

    def pinned(self) -> "CurateRecipe":
        """The recipe with the content of every list and model that it names, without which the same recipe would not mean the same rows.

        Raises:
            ValueError: one cannot be read, or is not what the recipe itself pins.
        """
        return self.model_copy(update={"urls": self.urls.pinned(), "measures": self.measures.pinned()})

    def tables(self) -> list[tuple[Rule | OwnRule, ...]]:
        """The families in their order, then the recipe's own rules."""
        return [*(FAMILIES[name] for name in self.families), tuple(rule.parsed() for rule in self.rules)]

    def bounds(self) -> dict[str, Bound]:
        return {name: Bound(threshold.min, threshold.max) for name, threshold in self.thresholds.items()}
