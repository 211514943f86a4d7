"""A ridge map: what trained embeddings would be for values outside train's vocabulary, from the vectors of their words.

Of N train values with text vectors s_v, trained rows e_v and n_v train rows (w_v: the shares that n_v have of all):

    minimize over W:  sum_v w_v |e_v - m - (s_v - c) W|^2 + penalty * |W|^2 * g
    c, m: the means of s and e, weighted by w;  g: the mean eigenvalue of the weighted covariance of s

The penalty is chosen by cross-validation over the values, by the same weighted error; an infinite one gives m to all.

Shape symbols: `N` train values, `M` new values, `S` width of text vectors, `D` width of embeddings.
"""

from dataclasses import dataclass

import numpy as np

PENALTIES = (*(10.0 ** np.arange(-4, 4.5, 0.5)).tolist(), float("inf"))
FOLDS = 5


@dataclass(frozen=True)
class RidgeMap:
    """A fitted map.

    Attributes:
        text_mean, mean, weights: c `[S]`, m `[D]`, W `[S, D]`.
        penalty: that was chosen.
        explained: the share of the held-out weighted variance of e that it explained; 0 for an infinite penalty.
    """

    text_mean: np.ndarray
    mean: np.ndarray
    weights: np.ndarray
    penalty: float
    explained: float

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Rows `[M, D]` for text vectors `[M, S]`."""
        return self.mean + (vectors - self.text_mean) @ self.weights


def fit_ridge(vectors: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> RidgeMap:
    """The map of text vectors `[N, S]` to rows `[N, D]`, values weighted by their train rows `[N]`.

    Nothing is random: a value's fold follows from its place.

    Raises:
        ValueError: no value has a train row.
    """
    weights = np.asarray(counts, dtype=np.float64)
    if not weights.sum():
        raise ValueError("no value has a train row")
    vectors, rows = np.asarray(vectors, dtype=np.float64), np.asarray(rows, dtype=np.float64)
    fold_of = np.random.default_rng(0).permutation(len(rows)) % min(FOLDS, len(rows))
    errors = np.zeros(len(PENALTIES))
    for fold in range(fold_of.max() + 1):
        held_out = fold_of == fold
        if weights[~held_out].sum():
            fit = _Fit(vectors[~held_out], rows[~held_out], weights[~held_out])
            errors += fit.errors(vectors[held_out], rows[held_out], weights[held_out])
    best = int(errors.argmin()) if errors[-1] else len(PENALTIES) - 1
    fit = _Fit(vectors, rows, weights)
    explained = float(1 - errors[best] / errors[-1]) if errors[-1] else 0.0
    return RidgeMap(fit.text_mean, fit.mean, fit.solution(PENALTIES[best]), PENALTIES[best], explained)


class _Fit:
    """The solutions for all penalties, from one decomposition of the weighted covariance."""

    def __init__(self, vectors: np.ndarray, rows: np.ndarray, weights: np.ndarray):
        shares = (weights / weights.sum())[:, None]
        self.text_mean, self.mean = (shares * vectors).sum(axis=0), (shares * rows).sum(axis=0)
        centred = np.sqrt(shares) * (vectors - self.text_mean)
        eigenvalues, self.basis = np.linalg.eigh(centred.T @ centred)
        self.eigenvalues = eigenvalues.clip(min=0)
        self.projected = self.basis.T @ (centred.T @ (np.sqrt(shares) * (rows - self.mean)))

    def solution(self, penalty: float) -> np.ndarray:
        """W `[S, D]`."""
        return self.basis @ self._in_basis(penalty)

    def _in_basis(self, penalty: float) -> np.ndarray:
        size = self.eigenvalues.mean()
        if not size or np.isinf(penalty):
            return np.zeros_like(self.projected)
        return self.projected / (self.eigenvalues + penalty * size)[:, None]

    def errors(self, vectors: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The weighted squared error on other values, for each penalty."""
        inputs, targets = (vectors - self.text_mean) @ self.basis, rows - self.mean
        missed = (np.square(targets - inputs @ self._in_basis(penalty)).sum(axis=1) for penalty in PENALTIES)
        return np.array([(weights * of_penalty).sum() for of_penalty in missed])
