"""Sources, their sum, components, bias and inflation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from calorefine.errors import ConfigError, UncertaintyWarning, ValueRangeError
from calorefine.systematics import (
    ErrorSource,
    ObservableBins,
    assemble,
    closure_bias,
    ensemble_bias,
    inflate,
    with_bias,
)
from calorefine.systematics.principal_components import decompose
from calorefine.systematics.sources import from_alternatives, from_deviation, from_replicas


def test_total_is_the_sum_without_training(systematics):
    names = ["calibration", "training", "spectator", "residual", "generated"]
    assert list(systematics.sources) == names
    expected = sum(systematics.covariance(name) for name in names if name != "training")
    np.testing.assert_allclose(systematics.total, expected, rtol=1e-14)
    np.testing.assert_allclose(systematics.covariance("calibration"), np.cov(systematics.replicas["calibration"].T))
    difference = systematics.covariance("calibration") - systematics.covariance("training")
    np.testing.assert_array_equal(systematics.data_part(), difference)
    np.testing.assert_allclose(np.diag(systematics.correlation()), 1)
    np.testing.assert_allclose(systematics.errors() ** 2, np.diag(systematics.total))


def test_one_observable_is_a_block(systematics):
    part = systematics.part("p_gev")
    assert part == slice(8, 12)
    one = systematics.only("p_gev")
    np.testing.assert_array_equal(one.total, systematics.total[part, part])
    np.testing.assert_array_equal(one.replicas["calibration"], systematics.replicas["calibration"][:, part])
    swapped = systematics.only("efficiency", "e_over_p")
    np.testing.assert_array_equal(swapped.nominal, np.concatenate([systematics.nominal[12:], systematics.nominal[:8]]))
    with pytest.raises(ConfigError, match="did you mean 'p_gev'"):
        systematics.part("p_gve")


def test_seeds_alone_are_added_with_a_warning(make):
    with pytest.warns(UncertaintyWarning, match="no bootstrap replicas"):
        alone = make(calibration=None)
    assert "training" in alone.added
    assert "no bootstrap replicas" in alone.notes[0]


def test_a_negative_data_part_is_noted_not_clipped(make):
    rng = np.random.default_rng(4)
    found = make(k=5, training=make().nominal * (1 + 0.2 * rng.normal(size=(5, 15))))
    assert np.diag(found.data_part()).min() < 0
    assert "negative variance" in found.notes[0]


@pytest.mark.parametrize("rule", ["envelope", "mean", "separate"])
def test_one_alternative_is_its_deviation(rule):
    nominal, row = np.ones(3), np.array([1.5, 1.0, 0.8])
    (source,) = from_alternatives("spectator", nominal, row, rule=rule)
    np.testing.assert_allclose(source.covariance, np.outer(row - 1, row - 1), atol=1e-15)


def test_rules_of_alternatives():
    nominal, rows = np.zeros(3), np.array([[1.0, -2.0, 0.0], [0.5, 3.0, 0.0]])
    (envelope,) = from_alternatives("spectator", nominal, rows)
    np.testing.assert_allclose(np.sqrt(np.diag(envelope.covariance)), [1, 3, 0])
    (twice,) = from_alternatives("spectator", nominal, np.vstack([rows, rows[:1]]))
    np.testing.assert_allclose(np.diag(twice.covariance), np.diag(envelope.covariance))
    (mean,) = from_alternatives("spectator", nominal, rows, rule="mean")
    np.testing.assert_allclose(mean.covariance, rows.T @ rows / 2)
    separate = from_alternatives("spectator", nominal, rows, rule="separate")
    assert [one.name for one in separate] == ["spectator_alternative1", "spectator_alternative2"]
    np.testing.assert_allclose(sum(one.covariance for one in separate), rows.T @ rows)
    with pytest.raises(ConfigError, match="no rule 'max'"):
        from_alternatives("spectator", nominal, rows, rule="max")


def test_deviation_of_all_bins_or_each():
    row = np.array([1.0, -2.0])
    np.testing.assert_array_equal(from_deviation("residual", row).covariance, [[1, -2], [-2, 4]])
    np.testing.assert_array_equal(from_deviation("residual", row, correlated=False).covariance, [[1, 0], [0, 4]])


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99, 1.0])
def test_components_and_remainder_make_up_every_variance(systematics, fraction):
    parts = systematics.components(fraction=fraction)
    for name, source in systematics.added.items():
        shapes = np.array([part.shape for part in parts.components if part.source == name]).reshape(-1, 15)
        variance = (shapes**2).sum(axis=0) + parts.remainder[name]
        np.testing.assert_allclose(variance, np.diag(source.covariance), rtol=1e-8)
        if fraction == 1 and name != "generated":
            np.testing.assert_allclose(shapes.T @ shapes, source.covariance, rtol=1e-8, atol=1e-6)
            assert not parts.remainder[name].any()
    names = [part.name for part in parts.components]
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith(("spectator", "residual"))] == ["spectator_1", "residual_1"]
    assert not any(name.startswith(("generated", "training")) for name in names)


def test_few_seeds_flag_the_mean_of_replicas_rarely():
    """Three seeds with the same spread as 30 replicas; 6 bins, 400 toys of no bias, 1 % of them allowed.

    Seed 5: with Welch's degrees of freedom about 8 % are flagged; 3 % has a chance of failing by accident below 1e-3.
    """
    rng, flagged = np.random.default_rng(5), 0
    bins = {"x": ObservableBins(np.arange(7.0), counts=False)}
    for _ in range(400):
        rows, seeds, nominal = rng.normal(size=(30, 6)), rng.normal(size=(3, 6)), rng.normal(size=6)
        bias = ensemble_bias(assemble(nominal + 100, bins, calibration=rows + 100, training=seeds + 100))
        flagged += bool(bias.flagged.any())
    assert flagged <= 12


def test_small_shape_that_carries_a_sum_is_kept():
    """Three migrations of 20 events in each bin, a common shift of 2, and 10 of independent errors in 40 bins."""
    rng = np.random.default_rng(3)
    moved = np.linalg.qr(np.column_stack([np.ones(40), rng.normal(size=(40, 3))]))[0][:, 1:] * 20 * np.sqrt(40)
    calibration = ErrorSource("calibration", moved @ moved.T + 4.0)
    generated = ErrorSource("generated", 100.0 * np.eye(40))
    parts = decompose({one.name: one for one in (calibration, generated)})
    total = calibration.covariance.sum() + generated.covariance.sum()
    shapes = sum(part.shape.sum() ** 2 for part in parts.components)
    assert len(parts.components) == 4
    assert shapes + sum(left.sum() for left in parts.remainder.values()) == pytest.approx(total, rel=0.01)


def test_components_of_few_replicas_are_fewer_than_replicas(make):
    parts = make(k=6).components(fraction=1.0)
    assert sum(part.source == "calibration" for part in parts.components) == 5


def test_components_do_not_depend_on_units(make):
    """Efficiencies in percent: the same shapes."""
    base = make()
    unit = np.where(np.arange(15) < 12, 1.0, 100.0)
    rows = {name: base.replicas[name] * unit for name in base.replicas}
    generated = base.covariance("generated") * np.outer(unit, unit)
    other = make(**rows, generated=generated, residual=0.03 * base.nominal * unit, alternatives={})
    other = assemble(base.nominal * unit, base.bins, **rows, generated=generated)
    base = assemble(base.nominal, base.bins, **base.replicas, generated=base.covariance("generated"))
    found, expected = other.components().components, base.components().components
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.shape, two.shape * unit, rtol=1e-6, atol=1e-6)


def test_a_deviation_in_one_bin_is_a_shape():
    one = assemble([1.0, 2.0], {"h": ObservableBins(np.arange(3.0))}, residual=[0.0, 0.5])
    (part,) = one.components().components
    np.testing.assert_allclose(part.shape, [0, 0.5])


def unbiased(seed, *, shift=0.0, train=0.0, seeds=None):
    """Nominal, 30 replicas; `train`: standard deviation of the training, in all of them."""
    rng = np.random.default_rng(seed)
    nominal = 100 + train * rng.normal(size=6)
    replicas = 100 + shift + np.hypot(1.0, train) * rng.normal(size=(30, 6))
    training = None if seeds is None else 100 + train * rng.normal(size=(seeds, 6))
    return assemble(nominal, {"h": ObservableBins(np.arange(7.0))}, calibration=replicas, training=training)


def test_bias_of_the_mean_is_flagged_by_its_own_error():
    """sigma / sqrt(30) = 0.18: a shift of 1.5 is seen in every bin, no shift in 1 %; 1e-3 to fail by accident."""
    assert ensemble_bias(unbiased(1, shift=1.5)).flagged.all()
    false = sum(ensemble_bias(unbiased(seed)).off for seed in range(300))
    assert false <= binom.ppf(1 - 1e-3, 300, 0.01)


def test_a_bias_of_a_fourth_of_the_error_is_allowed():
    """Seeds 0 to 599, 30 replicas, 6 bins: at the threshold 1 % of ensembles are off; 1e-3 to fail by accident."""
    false = sum(ensemble_bias(unbiased(seed, shift=0.25)).off for seed in range(600))
    assert false <= binom.ppf(1 - 1e-3, 600, 0.01)
    largest = [np.abs(ensemble_bias(unbiased(seed)).pulls).max() for seed in range(50)]
    assert np.mean(np.array(largest) > 0.25) > 0.5  # the size alone would be an alarm in most ensembles without a bias


def test_a_bias_is_not_said_to_agree_because_seeds_are_few():
    """Seed 1: a bias of 2.4 errors in one of 40 bins, 5 seeds: a chi2 in one direction has a p-value of 0.2."""
    rng = np.random.default_rng(1)
    rows, seeds = 100 + rng.normal(size=(20, 40)), 100 + 0.2 * rng.normal(size=(5, 40))
    rows[:, 3] += 2.4
    bias = ensemble_bias(
        assemble(np.full(40, 100.0), {"h": ObservableBins(np.arange(41.0))}, calibration=rows, training=seeds)
    )
    assert bias.off
    assert np.flatnonzero(bias.exceeds).tolist() == [3]
    assert not bias.flagged.any()  # 5 seeds of such a spread don't exclude an unlucky training in one of 40 bins
    assert "above 0.25 in" in bias.numbers()


def test_two_replicas_test_bins_but_not_all_together():
    """Shares: their sum doesn't vary, so that there is no direction for one degree of freedom."""
    shares = assemble([0.5, 0.5], {"h": ObservableBins(np.arange(3.0))}, calibration=[[0.4, 0.6], [0.5, 0.5]])
    bias = closure_bias(shares, [0.6, 0.4])
    assert bias.chi2 is None
    assert "all bins together not tested: 2 directions" in bias.numbers()
    assert bias.to_dict()["chi2"] is None
    assert not bias.off


def test_bias_as_a_source_is_what_twice_the_nominal_minus_the_mean_would_move():
    """Seed 1: less the error of the mean, 0.18."""
    one = unbiased(1, shift=1.5)
    moved = one.nominal - (2 * one.nominal - one.replicas["calibration"].mean(axis=0))
    added = with_bias(one)
    expected = np.sqrt(moved**2 - np.diag(one.covariance("calibration")) / 30)
    np.testing.assert_allclose(added.errors("bias"), expected)
    np.testing.assert_allclose(added.total - one.total, np.outer(expected, expected))
    with pytest.raises(ConfigError, match="a source 'bias' already"):
        with_bias(added)


def test_bias_knows_the_training_of_the_nominal():
    """Training alone as large as the statistics: accounted for where seeds tell it; 1e-3 to fail by accident."""
    known = sum(ensemble_bias(unbiased(s, train=1.0, seeds=25)).significant for s in range(200))
    assert known <= binom.ppf(1 - 1e-3, 200, 0.02)
    unknown = sum(ensemble_bias(unbiased(s, train=1.0)).significant for s in range(200))
    assert unknown > 100


def test_inflation_covers_the_closure(systematics):
    one = assemble(systematics.nominal, systematics.bins, calibration=systematics.replicas["calibration"])
    truth = one.nominal * 1.3
    before = closure_bias(one, truth)
    assert before.significant
    scaled = inflate(one, truth)
    assert scaled.sources["calibration"].scale == pytest.approx(np.sqrt(before.chi2.reduced))
    assert closure_bias(scaled, truth).chi2.reduced == pytest.approx(1)
    np.testing.assert_allclose(scaled.errors(), one.errors() * np.sqrt(before.chi2.reduced))
    assert "multiplied by" in scaled.notes[-1]
    added = inflate(one, truth, rule="bias")
    assert np.all(np.abs(one.nominal - truth) <= added.errors())
    assert closure_bias(added, truth).chi2.reduced < 1
    np.testing.assert_array_equal(ensemble_bias(scaled).error, ensemble_bias(one).error)


def test_inflation_leaves_alone_what_covers_already(systematics):
    same = inflate(systematics, systematics.nominal)
    np.testing.assert_array_equal(same.total, systematics.total)
    assert "nothing inflated" in same.notes[-1]


def test_inflation_of_one_source_among_several(systematics):
    truth = systematics.nominal * np.where(np.arange(15) % 2, 1.3, 0.7)
    wider = inflate(systematics, truth)
    assert closure_bias(wider, truth).chi2.reduced == pytest.approx(1)
    np.testing.assert_array_equal(wider.covariance("generated"), systematics.covariance("generated"))
    with pytest.raises(ConfigError, match="no factor on the errors of 'residual'"):
        inflate(systematics, truth, source="residual")


def test_what_cannot_be_used_is_refused(systematics):
    bins = {"h": ObservableBins(np.arange(3.0))}
    with pytest.raises(ConfigError, match="1 replica, expected at least 2"):
        from_replicas("calibration", np.ones((1, 2)))
    with pytest.raises(ValueRangeError, match="the first in row 1, bin 0"):
        from_replicas("calibration", [[1, 2], [np.nan, 2]])
    with pytest.raises(ValueRangeError, match="'h': nominal values are not finite"):
        assemble([1, np.nan], bins)
    with pytest.raises(ConfigError, match=r"2 bins together, but found \{'nominal': 3\}"):
        assemble([1, 2, 3], bins)
    with pytest.raises(ValueRangeError, match="eigenvalue"):
        ErrorSource("generated", np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueRangeError, match="not symmetric"):
        ErrorSource("generated", np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ConfigError, match="letters, digits"):
        ErrorSource("a/b", np.eye(2))
    with pytest.raises(ConfigError, match="two have the same name"):
        assemble([1, 2], bins, residual=[1, 1], alternatives={"residual": [1, 2]})
    with pytest.raises(ConfigError, match=r"no source 'calibratio'.*did you mean 'calibration'"):
        systematics.errors("calibratio")
    with pytest.raises(ConfigError, match="level 68"):
        systematics.interval(68)
    with pytest.raises(ValueRangeError, match="difference of shape"):
        systematics.chi2([1.0])
    with pytest.raises(ConfigError, match="fraction 99"):
        systematics.components(fraction=99)
