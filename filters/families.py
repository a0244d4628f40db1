"""The families a recipe can name, in one place."""

from filters.c4 import C4, C4_FINEWEB, MC4
from filters.fineweb import FINEWEB
from filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from filters.language import LANGUAGE
from filters.pii import PII
from filters.rules import Rule

FAMILIES: dict[str, tuple[Rule, ...]] = {
    family[0].family: family for family in (LANGUAGE, GOPHER_REPETITION, GOPHER_QUALITY, C4, C4_FINEWEB, MC4, FINEWEB, PII)
}
