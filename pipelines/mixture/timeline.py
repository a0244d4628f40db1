"""Which source's turn it is, as arithmetic: the n-th sequence of a phase without a list of them.

A phase has n_s sequences of source s. They are laid out on a line of time, the i-th at (2i + 1) / (2 n_s), and read from left to right,
so every prefix holds every source's share to within a sequence or two, and the whole phase exactly.
"""

import heapq
from collections.abc import Sequence

from pipelines.mixture.plan import PlannedPhase

_TIME = 40  # bits of the time line


def drawn_in(phase: PlannedPhase, step: int) -> list[int]:
    """Sequences of each share of a phase that come before `step`."""
    within = min(max(step - phase.first_step, 0), phase.steps)
    return drawn_of([share.sequences for share in phase.shares], within * phase.batch_size)


def drawn_of(counts: Sequence[int], total: int) -> list[int]:
    """The first `total` of the sequences of sources with `counts` each, spread evenly: exact integers, O(sources).

    The i-th of n sequences lies at time floor((2i + 1) * 2^40 / 2n); those at the very same time go in the sources' order. All
    that lie before a time a little too early are counted at once, the few that are missing one after the other.
    """
    whole = sum(counts)
    assert 0 <= total <= whole, f"{total} of {whole} sequences"
    if total == whole or len(counts) == 1:
        return list(counts) if total == whole else [total]
    # Before time t lie at most n t + 1/2 sequences of each source, so before this one at most `total` in all.
    early = (max(total - len(counts), 0) << _TIME) // whole
    # (2i + 1) * 2^40 // 2n < t  <=>  (2i + 1) * 2^39 < n * t
    drawn = [(((n * early - 1) >> (_TIME - 1)) + 1) // 2 if n and early else 0 for n in counts]
    time = lambda source: ((2 * drawn[source] + 1) << (_TIME - 1)) // counts[source]
    queue = [(time(source), source) for source in range(len(counts)) if drawn[source] < counts[source]]
    heapq.heapify(queue)
    for _ in range(total - sum(drawn)):
        _, source = queue[0]
        drawn[source] += 1
        if drawn[source] < counts[source]:
            heapq.heapreplace(queue, (time(source), source))
        else:
            heapq.heappop(queue)
    return drawn
