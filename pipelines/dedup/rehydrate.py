"""How often a deduplicated document may be repeated, given how many copies the crawl held.

FineWeb-2's "rehydration": text that a crawl repeats a little is better than average, text it repeats thousands of times is
boilerplate. The table is theirs (upper bound of the cluster size, weight); a mixture may multiply a document's weight by it.
"""

from collections.abc import Sequence

import numpy as np

# (largest cluster size, repetitions); the last row has no bound. FineWeb-2, 2025.
FINEWEB2: tuple[tuple[int | None, float], ...] = ((1, 1), (2, 2), (4, 3), (99, 5), (999, 8), (None, 1))


def rehydration_weight(cluster_size: int | np.ndarray, table: Sequence[tuple[int | None, float]] = FINEWEB2) -> float | np.ndarray:
    """Repetitions for clusters of the given size (an integer >= 1, or an array of them).

    Raises:
        ValueError: a size below 1.
    """
    sizes = np.asarray(cluster_size)
    if sizes.size and sizes.min() < 1:
        raise ValueError(f"a cluster has at least one document, got size {sizes.min()}")
    bounds = np.array([bound for bound, _ in table[:-1]])
    weights = np.array([weight for _, weight in table], np.float64)[np.searchsorted(bounds, sizes, side="left")]
    return float(weights) if weights.ndim == 0 else weights
