"""Estimates with influences, bins, comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine import Column, Columns, stats
from calorefine.errors import ConfigError
from calorefine.events import Events
from calorefine.io.sample import SampleRows
from calorefine.shares import Shares
from calorefine.twosample.binned import (
    CUT_LEVELS,
    Comparison,
    PairedBins,
    binned_efficiencies,
    binned_moments,
    compared,
    context_values,
    corrected_p_value,
    deviation,
)
from calorefine.twosample.estimates import (
    efficiency_estimate,
    half_width_estimate,
    mean_estimate,
    median_estimate,
    std_estimate,
)
from calorefine.twosample.overlay import overlay

ESTIMATORS = [mean_estimate, std_estimate, half_width_estimate, median_estimate]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("signed", [False, True])
def test_error_is_the_spread_over_samples(estimator, signed):
    """400 samples: the standard deviation is known to 3.5 %; 15 % fails by accident less than once in 10 000 runs."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        values, weight = rng.gamma(4.0, size=800), rng.normal(1.0, 0.8 if signed else 0.0, 800)
        one = estimator(values, weight)
        found.append((one.value, np.sqrt(stats.sum_w2(one.influence))))
    value, error = np.array(found).T
    assert np.mean(error) == pytest.approx(np.std(value), rel=0.15)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_integer_weights_are_repetitions_for_the_value(estimator):
    rng = np.random.default_rng(2)
    values, counts = rng.normal(size=300), rng.integers(0, 4, 300)
    repeated = estimator(np.repeat(values, counts), np.ones(counts.sum()))
    assert estimator(values, counts.astype(float)).value == pytest.approx(repeated.value)
    assert estimator(values, 7.0 * counts).value == pytest.approx(repeated.value)


def test_error_of_an_efficiency_is_from_sum_w2_of_both_sides():
    rng = np.random.default_rng(3)
    passed, weight = (rng.random(200) < 0.3).astype(float), rng.random(200)
    one = mean_estimate(passed, weight)
    inside, outside = (stats.sum_w2(weight[passed == side]) for side in (1, 0))
    expected = (1 - one.value) ** 2 * inside + one.value**2 * outside
    assert stats.sum_w2(one.influence) == pytest.approx(expected / stats.sum_w(weight) ** 2)


def test_negative_variance_is_none():
    assert std_estimate(np.array([0.0, 1.0, -10.0]), np.array([1.0, 1.0, -0.5])) is None


def test_twins_cancel_in_pull_and_ratio():
    rng = np.random.default_rng(4)
    values = rng.normal(5, 1, 500)
    first, second = mean_estimate(values + 0.01, np.ones(500)), mean_estimate(values, np.ones(500))
    alone = compared(first, second, np.arange(1000))
    twins = compared(first, second, np.tile(np.arange(500), 2))
    assert abs(alone.pull) < 1
    assert twins.pull is None or abs(twins.pull) > 1000
    assert twins.ratio == alone.ratio == pytest.approx(1.002, abs=1e-3)
    assert twins.ratio_error < 0.01 * alone.ratio_error


def test_pulls_of_a_generator_that_knows_its_training_sample_have_width_one():
    """400 pulls: their width is known to 3.5 %; 15 % fails by accident less than once in 10 000 runs."""
    rng = np.random.default_rng(14)
    pulls = []
    for _ in range(400):
        training, reference = rng.normal(size=300), rng.normal(size=600)
        generated = rng.choice(training, 900)
        pair = half_width_estimate(generated, np.ones(900)), half_width_estimate(reference, np.ones(600))
        pulls.append([compared(*pair, np.arange(1500), training=r).pull for r in (2.0, 0.0)])
    assert np.std(pulls, axis=0) == pytest.approx([1.0, np.sqrt(55 / 25)], rel=0.15)


def test_training_statistics_are_in_every_bin():
    rng = np.random.default_rng(15)
    context, x = rng.random((2, 4000)), rng.normal(size=(2, 4000))
    with_training, without = (
        binned_moments(*x, {"c": binning(*context, training=training)})["c"] for training in (3.0, 0.0)
    )
    for one, other in zip(with_training, without, strict=True):
        assert other.mean.pull / one.mean.pull == pytest.approx(np.sqrt(5 / 2), rel=0.05)
        assert one.mean.generated_error == other.mean.generated_error
        assert one.std.ratio_error / other.std.ratio_error == pytest.approx(np.sqrt(5 / 2), rel=0.1)


def binning(generated, reference, *, weight=None, n_bins=5, training=0.0):
    weights = np.ones(len(generated)), np.ones(len(reference)) if weight is None else weight
    own = np.arange(len(generated) + len(reference), dtype=np.uint64)
    pair = own[: len(generated)], own[len(generated) :]
    return PairedBins(generated, reference, weights=weights, event_keys=pair, n_bins=n_bins, training=training)


def test_bins_hold_equal_sums_of_weights_and_few_values_get_a_bin_each():
    rng = np.random.default_rng(5)
    values, weight = rng.exponential(size=2000), rng.random(2000)
    found = binning(values, values, weight=weight).bins
    inside = [weight[(values > b.low) & (values <= b.high)].sum() for b in found]
    np.testing.assert_allclose(inside, weight.sum() / 5, rtol=0.01)
    discrete = binning(np.array([1.0, 2, 2]), np.array([1.0, 2, 3])).bins
    assert [(b.low, b.high, b.center) for b in discrete] == [(1, 1.5, 1), (1.5, 2.5, 2), (2.5, 3, 3)]
    assert len(binning(np.zeros(3), np.zeros(4)).bins) == 1


def test_a_bin_without_generated_events_is_none():
    reference = np.arange(100.0)
    moments = binned_moments(np.zeros(50), reference, {"c": binning(np.zeros(50), reference)})["c"]
    assert moments[0].mean.pull is not None
    assert moments[4].mean.generated is None
    assert moments[4].mean.reference == pytest.approx(89.5)
    assert moments[4].mean.reference_error > 0


def test_efficiencies_are_the_levels_and_find_a_shift():
    rng = np.random.default_rng(6)
    context, x = rng.random((2, 4000)), rng.normal(size=(2, 4000))
    bins = {"c": binning(context[0], context[1], n_bins=4)}
    same = binned_efficiencies(x[0], x[1], bins, weight=np.ones(4000))
    assert list(same) == [f"{level:g}" for level in CUT_LEVELS]
    assert np.mean([one.reference for one in same["0.9"].bins["c"]]) == pytest.approx(0.1, abs=0.001)
    accident = deviation(same["0.5"].bins["c"])
    assert accident.mean < 3 * accident.expected
    moved = binned_efficiencies(x[0] + 1, x[1], bins, weight=np.ones(4000))
    assert deviation(moved["0.5"].bins["c"]).mean == pytest.approx(0.68, abs=0.06)


def test_deviation_leaves_out_what_is_not_significant():
    good = Comparison(0.5, 0.01, 0.4, 0.01, 1.25, 0.03, 5.0)
    found = deviation([good, Comparison(0.5, 0.01, 0.02, 0.01, 25.0, 9.0, 5.0), Comparison()])
    assert (found.mean, found.worst, found.n_bins, found.n_left_out) == (pytest.approx(0.25), 0.25, 1, 2)
    assert found.absolute == pytest.approx(0.1)
    assert deviation([Comparison()]).mean is None


def test_categories_are_shown_by_value():
    columns = Columns({"x": None}, {"charge": Column(categories=[-1, 1]), "p": None})
    table = {"charge": np.array([1, -1, 1]), "p": np.array([3.0, 4.0, 5.0])}
    key = np.arange(3, dtype=np.uint64)
    events = Events(np.zeros((3, 1), np.float32), columns.encode_context(table), np.ones(3), key, key)
    found = context_values(columns, events)
    assert found["charge"].tolist() == [1, -1, 1]
    assert found["p"].tolist() == [3, 4, 5]


def test_corrected_p_value():
    assert corrected_p_value(1.96, 1) == pytest.approx(0.05, abs=1e-4)
    assert corrected_p_value(-1.96, 100) == pytest.approx(1 - 0.95**100, abs=1e-3)
    assert corrected_p_value(0.0, 3) == 1.0
    assert 0 <= corrected_p_value(50.0, 100) < 1e-100


def test_no_bins_is_an_error():
    with pytest.raises(ConfigError, match="n_bins: 0"):
        binning(np.zeros(3), np.zeros(3), n_bins=0)


@pytest.mark.parametrize("copies", [1, 5])
def test_efficiencies_of_zero_and_one_have_errors(copies):
    """As of 1.5 events more, and Clopper and Pearson's interval at the number of events, not of their copies."""
    group = np.repeat(np.arange(40), copies)
    passed = efficiency_estimate(np.ones(40 * copies), np.ones(40 * copies))
    found = compared(passed, efficiency_estimate(np.zeros(20), np.ones(20)), np.append(group, 40 + np.arange(20)))
    assert (found.generated_error, found.reference_error) == pytest.approx((np.sqrt(1.5) / 40, np.sqrt(1.5) / 20))
    assert found.generated_interval == pytest.approx((0.158655 ** (1 / 40), 1), abs=1e-4)
    assert found.reference_interval == pytest.approx((0, 1 - 0.158655 ** (1 / 20)), abs=1e-4)
    assert found.pull == pytest.approx(1 / np.hypot(found.generated_error, found.reference_error))
    alone = compared(passed, None, group)
    assert (alone.generated_error, alone.generated_interval) == (found.generated_error, found.generated_interval)


def test_empty_bins_of_an_overlay_have_errors():
    values, keys = np.array([0.5] * 30 + [2.5] * 30), np.arange(60, dtype=np.uint64)
    rows = SampleRows({"x": values}, np.full(60, 2.0), keys, keys)
    found = overlay("x", rows, rows, bins=5)
    assert np.sum(found.generated[0] == 0) == 3
    assert found.generated[1].min() == pytest.approx(2 * np.sqrt(1.5))
    assert found.generated[1].max() == pytest.approx(2 * np.sqrt(31.5))


def test_shares_count_rows_of_one_event_once():
    """Five rows of equal key are as one; bins are those of numpy."""
    rng = np.random.default_rng(31)
    values, weight, edges = rng.normal(size=500), rng.normal(1, 0.4, 500), np.linspace(-2, 2, 9)
    copied = (np.repeat(values, 5), np.repeat(weight, 5), np.repeat(np.arange(500, dtype=np.uint64), 5))
    found = Shares.of(edges, {"once": (values, weight), "copied": copied, "rows": copied[:2]})
    expected = np.histogram(values, edges, weights=weight / weight.sum())[0]
    np.testing.assert_allclose(found.values["once"], expected, atol=1e-14)
    np.testing.assert_allclose(found.errors["copied"], found.errors["once"], rtol=1e-12)
    np.testing.assert_allclose(found.errors["rows"], np.array(found.errors["once"]) / np.sqrt(5), rtol=1e-12)
