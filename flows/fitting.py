"""Fit a mixture's weights to what there is, so that a crawl of any size and a generator of any luck give a plan that holds.

A person who writes a mixture wants a shortfall refused (`pipelines.mixture` does). The main job cannot know beforehand how
many pages will be kept or how many generations accepted: it asks for shares, and where a source has less, even repeated
as often as is allowed, the others take its place. What was asked and what was achieved both stand in the report.
"""

from collections.abc import Mapping

SPARE = 0.95  # of what a source can give: estimates from samples are a little off
LEAST_SEQUENCES = 12  # a source of fewer cannot meet its share within a tenth in whole sequences


def fit_weights(weights: Mapping[str, float], supply: Mapping[str, float], tokens: int, sequence_length: int) -> dict[str, int]:
    """Tokens per source, at most `tokens` in all.

    Args:
        weights: shares asked for.
        supply: tokens each source can give, repetitions included.

    A source that cannot fill `LEAST_SEQUENCES` is left out; the others share what it, and those that are exhausted, leave.
    """
    most = {name: SPARE * supply[name] for name, weight in weights.items() if weight > 0}
    most = {name: limit for name, limit in most.items() if limit >= LEAST_SEQUENCES * sequence_length}
    given: dict[str, float] = {}
    left = float(tokens)
    open_sources = {name: weights[name] for name in most}
    while open_sources:
        total = sum(open_sources.values())
        exhausted = [name for name, weight in open_sources.items() if left * weight / total >= most[name]]
        if not exhausted:
            given |= {name: left * weight / total for name, weight in open_sources.items()}
            break
        for name in exhausted:
            given[name] = most[name]
            left -= most[name]
            del open_sources[name]
    return {name: int(given[name]) for name in weights if name in given}
