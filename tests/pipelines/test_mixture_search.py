"""A search finds the weights of a known law, from noisy runs, and says how far it can be trusted."""

import numpy as np
import pytest

from pipelines.mixture.search import fit_losses, propose, rank_correlation, sample_mixtures

EVEN = np.full(4, 0.25)


def law(weights):
    """Two held-out sets: each falls with a power of its own source's weight, the third source helps both a little, the fourth none."""
    own = 2.0 + 1.5 * (weights[:, :2] + 0.01) ** -0.15
    return own - 0.4 * weights[:, 2:3]


def test_it_finds_what_a_known_law_wants():
    weights = sample_mixtures(EVEN, 32, 1.0, 3)
    losses = law(weights) * np.exp(0.003 * np.random.default_rng(0).standard_normal((32, 2)))
    fit = fit_losses(weights, losses)
    targets = np.array([1.0, 1.0])
    proposed = propose(fit, EVEN, targets, np.ones(4), 0)
    candidates = sample_mixtures(EVEN, 4000, 1.0, 9)
    best = law(candidates).mean(axis=1).min()
    gain = lambda row: (law(EVEN[None]).mean() - law(row[None]).mean()) / (law(EVEN[None]).mean() - best)
    assert gain(proposed) > 0.7
    assert proposed[3] < 0.06 and abs(proposed.sum() - 1) < 1e-9
    assert rank_correlation(fit.left_out.mean(axis=1), losses.mean(axis=1)) > 0.9
    only_first = propose(fit, EVEN, np.array([1.0, 0.0]), np.ones(4), 0)
    assert only_first[0] > proposed[0] and only_first[1] < 0.1
    capped = propose(fit, EVEN, targets, np.array([0.3, 1.0, 1.0, 1.0]), 0)
    assert capped[0] <= 0.3


def test_left_out_predictions_are_what_refitting_gives():
    weights, noise = sample_mixtures(EVEN, 14, 1.0, 1), np.random.default_rng(1)
    losses = law(weights) * np.exp(0.02 * noise.standard_normal((14, 2)))
    fit = fit_losses(weights, losses)
    features = np.concatenate([weights, np.log(np.maximum(weights, 0.01))], axis=1)
    design = np.concatenate([np.ones((14, 1)), (features - fit.centre) / fit.scale], axis=1)
    for out in range(14):
        keep = np.arange(14) != out
        penalty = np.diag([0.0, *[fit.ridge * 14] * 8])
        coefficients = np.linalg.solve(design[keep].T @ design[keep] + penalty, design[keep].T @ np.log(losses[keep]))
        assert np.allclose(np.exp(design[out] @ coefficients), fit.left_out[out], rtol=1e-9)


def test_more_mixtures_keep_the_first_and_too_few_are_refused():
    assert np.array_equal(sample_mixtures(EVEN, 5, 1.0, 7), sample_mixtures(EVEN, 9, 1.0, 7)[:5])
    assert np.allclose(sample_mixtures(EVEN, 9, 1.0, 7).sum(axis=1), 1)
    with pytest.raises(ValueError, match="four are the least"):
        fit_losses(np.stack([EVEN] * 3), np.ones((3, 2)))
    with pytest.raises(ValueError, match="max_repetition"):
        propose(fit_losses(sample_mixtures(EVEN, 8, 1.0, 7), np.ones((8, 2))), EVEN, np.ones(2), np.full(4, 0.1), 0)
