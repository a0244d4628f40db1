"""Weights from small runs: sample mixtures, fit held-out loss over them, predict the best.

The idea of RegMix (Liu et al. 2024) and Data Mixing Laws (Ye et al. 2024): how mixtures rank hardly depends on the size of the model, so
many small proxies, each on a mixture of its own, teach a regression what a mixture does to each held-out set. Here log loss is linear in the
weights and in their logarithms (a source helps its own domain by a power law and others about linearly), fitted by ridge regression; how
strongly it is held back is chosen by leaving one proxy out at a time, which also says how far the predictions can be trusted.
"""

from dataclasses import dataclass

import numpy as np

FLOOR = 0.01  # weight below which a source counts as all but absent
RIDGES = np.logspace(-4, 2, 25)
CANDIDATES = 100_000
AVERAGED = 100  # best candidates whose mean is proposed, as RegMix does: one candidate alone is the luckiest, not the best


def sample_mixtures(prior: np.ndarray, count: int, concentration: float, seed: int) -> np.ndarray:
    """Weights float64 [count, sources]: the first is the prior, the others Dirichlet around it (1.0 and an even prior: uniform on the simplex).

    The i-th is a function of (seed, i) alone, so asking for more later keeps the first.
    """
    prior = np.asarray(prior, np.float64) / np.sum(prior)
    rows = [prior]
    for index in range(1, count):
        drawn = np.random.Generator(np.random.Philox(key=[seed, index])).dirichlet(concentration * len(prior) * prior)
        rows.append((drawn + FLOOR) / (drawn + FLOOR).sum())
    return np.stack(rows)


@dataclass(frozen=True)
class LossFit:
    """Held-out losses over mixtures. M mixtures, S sources, T held-out sets."""

    coefficients: np.ndarray
    """[1 + 2 S, T], of the standardised features, the intercept first"""
    centre: np.ndarray
    scale: np.ndarray
    ridge: float
    left_out: np.ndarray
    """[M, T]: what was predicted of each mixture by a fit that had not seen it"""

    def predict(self, weights_MS: np.ndarray) -> np.ndarray:
        """Nats a token [M, T]."""
        return np.exp(_design((_features(weights_MS) - self.centre) / self.scale) @ self.coefficients)


def fit_losses(weights_MS: np.ndarray, losses_MT: np.ndarray) -> LossFit:
    """Fit log losses; the ridge is that of the least leave-one-out error.

    Raises:
        ValueError: fewer than four mixtures.
    """
    if len(weights_MS) < 4:
        raise ValueError(f"{len(weights_MS)} mixtures are too few to fit; four are the least")
    features = _features(weights_MS)
    centre, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    design, target = _design((features - centre) / scale), np.log(losses_MT)
    best = None
    for ridge in RIDGES:
        penalty = np.diag([0.0, *[ridge * len(weights_MS)] * features.shape[1]])
        solver = np.linalg.solve(design.T @ design + penalty, design.T)
        hat = design @ solver
        left_out = target - (target - hat @ target) / (1 - np.diag(hat))[:, None]  # the closed form of leaving one out
        error = float(((left_out - target) ** 2).mean())
        if best is None or error < best[0]:
            best = error, ridge, solver @ target, left_out
    return LossFit(best[2], centre, scale, float(best[1]), np.exp(best[3]))


def propose(fit: LossFit, prior: np.ndarray, targets_T: np.ndarray, most_S: np.ndarray, seed: int) -> np.ndarray:
    """The weights [S] that should give the least loss averaged over `targets_T`, among those no source of which exceeds `most_S`.

    Raises:
        ValueError: the limits leave no mixture.
    """
    drawn = np.random.Generator(np.random.Philox(key=[seed, 0])).dirichlet(np.ones(len(prior)), CANDIDATES)
    drawn = np.concatenate([(drawn + FLOOR) / (drawn + FLOOR).sum(axis=1, keepdims=True), [np.asarray(prior) / np.sum(prior)]])
    drawn = drawn[(drawn <= most_S).all(axis=1)]
    if not len(drawn):
        raise ValueError("no mixture keeps to the sources' max_repetition; lower the tokens")
    losses = fit.predict(drawn) @ (targets_T / targets_T.sum())
    return drawn[np.argsort(losses, kind="stable")[:AVERAGED]].mean(axis=0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, for values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _features(weights_MS: np.ndarray) -> np.ndarray:
    return np.concatenate([weights_MS, np.log(np.maximum(weights_MS, FLOOR))], axis=1)


def _design(features: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
