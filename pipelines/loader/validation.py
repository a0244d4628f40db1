"""The order of the validation split: every window of every source once, source after source."""

import numpy as np

from pipelines.mixture.plan import MixturePlan
from pipelines.packing import Concat, Indexed, Windows, whole_documents, window_index
from pipelines.shardset import Shard


class ValidationOrder:
    """Windows of held-out documents, packed as the training ones are; they are few, so an index is made when they are opened."""

    def __init__(self, shards: list[list[Shard]], plan: MixturePlan, batch_size: int):
        self.batch_size = batch_size
        self._windows = [_windows([shard.ends for shard in held], plan) for held in shards]
        self._ends = np.cumsum([windows.windows for windows in self._windows])
        self.windows = int(self._ends[-1])
        self.steps = -(-self.windows // batch_size)

    def rows(self, step: int) -> np.ndarray:
        """int64 [B, 2] of (source, window); the last batch may be smaller."""
        windows = np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.windows))
        sources = np.searchsorted(self._ends, windows, side="right")
        return np.stack([sources, windows - np.concatenate(([0], self._ends[:-1]))[sources]], axis=1)

    def pieces(self, source: int, windows: np.ndarray) -> np.ndarray:
        """As `Windows.pieces`."""
        return self._windows[source].pieces(windows)

    def ledger(self, step: int) -> list[int]:
        """Tokens read before `step`, per source."""
        counts = np.diff(np.minimum(step * self.batch_size, self._ends), prepend=0)
        return [int(windows.filled(np.arange(count)).sum()) for windows, count in zip(self._windows, counts.tolist(), strict=True)]


def _windows(ends: list[np.ndarray], plan: MixturePlan) -> Windows:
    if plan.packing == "concat":
        return Concat(ends, plan.sequence_length)
    index = np.frombuffer(window_index(whole_documents(ends), plan.sequence_length, plan.packing), "<i8")
    return Indexed(index, plan.sequence_length)
