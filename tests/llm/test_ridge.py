"""The ridge map: against scikit-learn's, planted effects, and none."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from fuxictr_llm.llm.vectors.ridge import PENALTIES, fit_ridge


def drawn(values=60, width=8, dim=3, noise=0.0, seed=0):
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(values, width)) + 5
    rows = vectors @ draw.normal(size=(width, dim)) + 2 + noise * draw.normal(size=(values, dim))
    return vectors, rows, draw.integers(1, 100, values)


def test_it_is_scikit_learns_ridge_with_weights():
    vectors, rows, counts = drawn(noise=3.0)
    ridge = fit_ridge(vectors, rows, counts)
    shares = counts / counts.sum()
    centred = np.sqrt(shares)[:, None] * (vectors - shares @ vectors)
    size = np.linalg.eigvalsh(centred.T @ centred).mean()
    reference = Ridge(alpha=ridge.penalty * size).fit(vectors, rows, sample_weight=shares)
    new = np.random.default_rng(1).normal(size=(5, 8))
    assert np.allclose(ridge(new), reference.predict(new))
    assert np.allclose(ridge.mean, shares @ rows) and 0 < ridge.penalty < np.inf


def test_words_that_decide_are_found_and_words_that_do_not_give_the_mean():
    vectors, rows, counts = drawn()
    ridge = fit_ridge(vectors[:50], rows[:50], counts[:50])
    assert ridge.explained > 0.99 and np.allclose(ridge(vectors[50:]), rows[50:], atol=0.1)
    noise = np.random.default_rng(2).normal(size=rows.shape)
    nothing = fit_ridge(vectors, noise, counts)
    assert nothing.penalty >= 1 and nothing.explained < 0.05
    assert np.abs(nothing(vectors) - np.average(noise, axis=0, weights=counts)).max() < 0.5
    constant = fit_ridge(vectors, np.ones((60, 2)), counts)
    assert np.allclose(constant(vectors), 1)


def test_the_penalty_is_the_best_of_cross_validation():
    """Against a slow literal version."""
    vectors, rows, counts = drawn(values=23, noise=4.0, seed=3)
    folds, errors = np.random.default_rng(0).permutation(23) % 5, []
    for penalty in PENALTIES[:-1]:
        error = 0.0
        for fold in range(5):
            fitted, held_out = folds != fold, folds == fold
            shares = counts[fitted] / counts[fitted].sum()
            centred = np.sqrt(shares)[:, None] * (vectors[fitted] - shares @ vectors[fitted])
            size = np.trace(centred.T @ centred) / 8
            model = Ridge(alpha=penalty * size).fit(vectors[fitted], rows[fitted], sample_weight=shares)
            missed = np.square(model.predict(vectors[held_out]) - rows[held_out]).sum(axis=1)
            error += (counts[held_out] * missed).sum()
        errors.append(error)
    assert fit_ridge(vectors, rows, counts).penalty == PENALTIES[int(np.argmin(errors))]


def test_values_count_by_their_train_rows():
    vectors, rows, counts = drawn(noise=1.0)
    twice = fit_ridge(vectors, rows, 2 * counts)
    assert np.allclose(twice.weights, fit_ridge(vectors, rows, counts).weights)
    seldom = np.where(np.arange(60) < 30, 1000, 0)
    broken = np.where(np.arange(60)[:, None] < 30, rows, 1e3)  # those without a row say nothing
    assert np.allclose(fit_ridge(vectors, broken, seldom)(vectors), fit_ridge(vectors, rows, seldom)(vectors))


@pytest.mark.parametrize("values", [1, 2, 3])
def test_few_or_equal_values_give_a_mean(values):
    vectors, rows, counts = (part[:values] for part in drawn())
    assert np.isfinite(fit_ridge(vectors, rows, counts)(vectors)).all()
    equal = fit_ridge(np.ones((4, 8)), rows[:1].repeat(4, axis=0), np.ones(4))
    assert np.allclose(equal(vectors), rows[:1])
    with pytest.raises(ValueError, match="no value has a train row"):
        fit_ridge(vectors, rows, np.zeros(values))
