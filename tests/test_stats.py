"""Weighted statistics: their laws, and their truth in large samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from calorefine import stats
from calorefine.errors import WeightError


@pytest.fixture
def sample():
    """Integers and signed weights: ties and negative sums included."""
    rng = np.random.default_rng(21)
    return rng.integers(0, 60, 400).astype(float), rng.normal(0.5, 1.0, 400)


LEVELS = np.linspace(0, 1, 41)


def statistics(values, weight):
    table = values[:, None] * [1.0, -2.0] + [0.0, 1.0]
    return np.concatenate(
        [
            stats.quantile(values, weight, LEVELS),
            stats.mean(table, weight),
            stats.covariance(table, weight).ravel(),
            [stats.mean(values, weight)],
        ]
    )


def test_doubling_a_weight_equals_duplicating_the_event(sample):
    values, weight = sample
    chosen = np.arange(400) % 3 == 0
    doubled = statistics(values, weight * np.where(chosen, 2, 1))
    duplicated = statistics(np.append(values, values[chosen]), np.append(weight, weight[chosen]))
    np.testing.assert_allclose(doubled, duplicated, rtol=1e-12, atol=1e-12)


def test_order_scale_and_zero_weights_change_nothing(sample):
    values, weight = sample
    expected = statistics(values, weight)
    order = np.random.default_rng(1).permutation(400)
    np.testing.assert_allclose(statistics(values[order], weight[order]), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(statistics(values, weight * 1e-6), expected, rtol=1e-10, atol=1e-10)
    more = np.append(values, [1e9, -1e9, 3.5]), np.append(weight, np.zeros(3))
    np.testing.assert_allclose(statistics(*more), expected, rtol=1e-12, atol=1e-12)


def test_quantiles_are_monotone_values_of_the_sample(sample):
    values, weight = sample
    found = stats.quantile(values, weight, LEVELS)
    assert np.all(np.diff(found) >= 0)
    assert np.isin(found, values).all()


def test_unweighted_quantiles_are_those_of_numpy():
    values = np.random.default_rng(2).normal(size=999)
    expected = np.quantile(values, LEVELS, method="inverted_cdf")
    assert np.array_equal(stats.quantile(values, np.ones(999), LEVELS), expected)


def test_signed_weights_find_the_quantiles_of_the_signal():
    """Signal N(0, 1) under a background N(2, 2), told apart by a flag that is right in 80 % of cases.

    Weights 4/3 and -1/3 have expectation 1 for signal and 0 for background.  Seed 5; a tolerance of 5 standard errors
    at each of 9 levels fails by chance with probability 6e-6.
    """
    rng, n = np.random.default_rng(5), 200_000
    signal = rng.random(n) < 0.5
    values = np.where(signal, rng.normal(0, 1, n), rng.normal(2, 2, n))
    weight = np.where(signal == (rng.random(n) < 0.8), 4 / 3, -1 / 3)
    assert (weight < 0).mean() > 0.4
    levels = np.linspace(0.1, 0.9, 9)
    truth = norm.ppf(levels)
    found = stats.quantile(values, weight, levels)
    at = (values[:, None] < truth) - levels
    error = np.sqrt(np.sum((weight[:, None] * at) ** 2, axis=0)) / weight.sum() / norm.pdf(truth)
    assert np.all(np.abs(found - truth) < 5 * error)


def test_isotonic_quantiles_do_not_ratchet_up():
    """A running maximum of the weighted distribution function would shift all quantiles to one side.

    Mean over 300 samples of 400 events, seed 6: its distance from the truth is within 5 standard errors of 0.05, the
    bias allowed at this size, with chance of failure 6e-7.
    """
    rng = np.random.default_rng(6)
    medians = []
    for _ in range(300):
        weight = np.where(rng.random(400) < 0.3, -1.0, 1.0)
        medians.append(stats.quantile(rng.normal(size=400), weight, 0.5))
    assert abs(np.mean(medians)) < 0.05 + 5 * np.std(medians) / np.sqrt(300)


def test_moments():
    values, weight = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 7.0]]), np.array([2.0, 1.0, -1.0])
    mean = (2 * values[0] + values[1] - values[2]) / 2
    expected = sum(w * np.outer(v - mean, v - mean) for v, w in zip(values, weight, strict=True)) / 2
    np.testing.assert_allclose(stats.mean(values, weight), mean)
    np.testing.assert_allclose(stats.covariance(values, weight), expected)


def test_effective_number():
    assert stats.n_eff(np.full(70, 0.1)) == pytest.approx(70)
    assert stats.n_eff([3.0, -1.0]) == pytest.approx(4 / 10)
    assert stats.n_eff(np.zeros(4)) == 0
    weight = np.float32([1e8] + [1.0] * 1000)
    assert stats.sum_w(weight) == 1e8 + 1000


@pytest.mark.parametrize("weight", [[1.0, -1.0], [1.0, -2.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
@pytest.mark.parametrize("what", [stats.mean, stats.covariance, lambda v, w: stats.quantile(v, w, 0.5)])
def test_weights_without_positive_sum(weight, what):
    with pytest.raises(WeightError, match=r"the weights of 2 events sum to .*, expected a positive sum"):
        what(np.array([1.0, 2.0]), np.array(weight))


def test_batch_mean_is_unbiased():
    """The mean over batches of 64 signed weights equals the weighted mean of the sample, as the batch's own sum can't.

    20 000 batches, seed 8; 5 standard errors, chance of failure 6e-7.
    """
    rng = np.random.default_rng(8)
    values, weight = torch.from_numpy(rng.normal(1.0, 2.0, 5000)), torch.from_numpy(rng.normal(0.2, 1.0, 5000))
    whole = stats.batch_mean(values, weight, float(weight.mean()))
    assert float(whole) == pytest.approx(float(stats.mean(values.numpy(), weight.numpy())))
    index = torch.from_numpy(rng.integers(0, 5000, (20_000, 64)))
    assert (weight[index].sum(dim=1) <= 0).any()
    means = np.array([float(stats.batch_mean(values[i], weight[i], float(weight.mean()))) for i in index])
    assert abs(means.mean() - float(whole)) < 5 * means.std() / np.sqrt(20_000)


def test_negative_and_undefined_weights_are_refused():
    stats.require_nonnegative([0.0, 1.0], "flow")
    stats.require_nonnegative([], "flow")
    with pytest.raises(WeightError, match=r"flow: 1 of 3 weights are negative, the smallest -0.5;.*PositiveWeights"):
        stats.require_nonnegative([1.0, -0.5, 0.0], "flow")
    with pytest.raises(WeightError, match="1 of 2 weights are negative or NaN"):
        stats.require_nonnegative([1.0, np.nan], "flow")


def test_sums_of_many_weights_are_those_of_each(sample):
    """In chunks and cells; the first weight's products give the error of a mean factor."""
    cell, weight = sample[0].astype(int) % 3, np.stack([sample[1], sample[1] * 1.5, sample[1] ** 2], axis=1)
    sums = stats.WeightSums(3, 4)
    for part in (slice(0, 150), slice(150, None)):
        sums.add(weight[part], cell=cell[part])
    ratio, error = sums.ratios()
    for c in range(3):
        inside = weight[cell == c]
        assert sums.n[c] == len(inside)
        np.testing.assert_allclose(sums.sum_w[c], inside.sum(axis=0))
        np.testing.assert_allclose(sums.sum_w2[c], (inside**2).sum(axis=0))
        np.testing.assert_allclose(sums.n_eff[c], [stats.n_eff(column) for column in inside.T])
        factor = inside[:, 2] / inside[:, 0]
        np.testing.assert_allclose(ratio[c, 2], stats.mean(factor, inside[:, 0]))
        expected = np.sqrt(stats.sum_w2(inside[:, 0] * (factor - ratio[c, 2]))) / inside[:, 0].sum()
        np.testing.assert_allclose(error[c], [0, 0, expected], atol=1e-7)
    assert sums.n_eff[3].tolist() == [0, 0, 0]
    assert np.isnan(ratio[3]).all()


def test_correlated_events_are_summed_before_they_are_squared():
    weight, cell = np.array([[1.0], [2.0], [-1.0], [4.0]]), np.array([0, 0, 1, 1])
    sums = stats.WeightSums(1, 2)
    sums.add(weight, cell=cell, group=np.array([5, 5, 5, 0]))
    assert sums.sum_w.tolist() == [[3], [3]]
    assert sums.sum_w2.tolist() == [[9], [17]]
    assert sums.n.tolist() == [1, 2]
    assert stats.group_sums(weight[:, 0], np.array([1, 1, 1, 0])).tolist() == [4, 2]
