"""The families a recipe can name, in one place."""

from filters.bad_words import C4_BAD_WORDS
from filters.c4 import C4, C4_FINEWEB, MC4
from filters.dclm import DCLM_QUALITY, DOLMA_QUALITY
from filters.edits import REFINEDWEB
from filters.fineweb import FINEWEB
from filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from filters.language import LANGUAGE
from filters.nemo import NEMO, NEMO_CODE
from filters.pii import PII, PII_SPANS
from filters.rules import Rule
from filters.toxicity import TOXICITY

FAMILIES: dict[str, tuple[Rule, ...]] = {
    family[0].family: family
    for family in (
        *(LANGUAGE, GOPHER_REPETITION, GOPHER_QUALITY, C4, C4_FINEWEB, MC4, FINEWEB, REFINEDWEB),
        *(DCLM_QUALITY, DOLMA_QUALITY, NEMO, NEMO_CODE, C4_BAD_WORDS, TOXICITY, PII, PII_SPANS),
    )
}
