"""Preprocessing: invertible, monotone, and true to the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from calorefine.data.column_transforms import Z_CLIP, ColumnTransforms
from calorefine.errors import ValueRangeError, WeightError
from calorefine.events import Column, Columns, Events

KINDS = ["quantile", "standard", "identity"]


def shapes(n, rng):
    """Columns of awkward shape: narrow, far from zero, skewed, with an atom, integers, and nearly constant."""
    return {
        "narrow": rng.normal(1e-4, 1e-6, n),
        "far": rng.normal(1e5, 10.0, n),
        "skewed": rng.exponential(1000.0, n),
        "atom": np.where(rng.random(n) < 0.4, 0.0, rng.normal(3.0, 1.0, n)),
        "integers": rng.poisson(3.0, n).astype(float),
        "heavy": rng.standard_cauchy(n),
        "rare": (rng.random(n) < 0.001).astype(float),
        "two": rng.choice([-1.0, 1.0], n),
    }


@pytest.fixture(params=list(shapes(2, np.random.default_rng())))
def column(request):
    """(n, 1) values and signed weights."""
    rng = np.random.default_rng(31)
    values = shapes(4000, rng)[request.param][:, None].astype(np.float32)
    return values, rng.normal(0.7, 1.0, 4000)


def fit(values, weight, kind):
    return ColumnTransforms().fit_columns(values, weight, [kind], ["c"])


@pytest.mark.parametrize("kind", ["quantile", "standard"])
def test_inverse_undoes_forward(column, kind):
    """Where nothing is clipped, to single precision of the range of the column."""
    values, weight = column
    transform = fit(values, weight, kind)
    z = transform(torch.from_numpy(values))
    back = transform.inverse(z).numpy()
    inside = (z.abs() < Z_CLIP).numpy()
    assert inside.mean() > 0.9
    scale = np.ptp(transform.knots.numpy()) + np.abs(values)
    assert np.all(np.abs(back - values)[inside] <= 3e-6 * scale[inside])
    assert torch.isfinite(z).all()


def test_integers_come_back_exactly():
    values = np.random.default_rng(32).poisson(3.0, (4000, 1)).astype(np.float32)
    transform = fit(values, np.ones(4000), "quantile")
    inside = torch.from_numpy(values[values[:, 0] <= 8])
    assert torch.equal(transform.inverse(transform(inside)).round(), inside)


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_are_monotone(column, kind):
    values, weight = column
    transform = fit(values, weight, kind)
    low, high = values.min() - np.ptp(values), values.max() + np.ptp(values)
    x = torch.linspace(float(low), float(high), 5001)[:, None]
    z = torch.linspace(-Z_CLIP, Z_CLIP, 5001)[:, None]
    assert (transform(x).diff(dim=0) >= 0).all()
    assert (transform.inverse(z).diff(dim=0) >= -1e-6 * float(transform.knots.abs().max())).all()


def test_quantile_columns_become_standard_normal():
    """A skewed column of 100 000 events: fractions below z are those of the normal distribution, to 0.5 %.

    Knots and fractions come from the same sample (seed 33), so that no fluctuation enters: the tolerance is the finite
    number of knots.
    """
    values = np.random.default_rng(33).exponential(5.0, (100_000, 1))
    z = fit(values, np.ones(100_000), "quantile")(torch.from_numpy(values)).numpy()
    levels = np.linspace(-2, 2, 9)
    np.testing.assert_allclose((z < levels).mean(axis=0), norm.cdf(levels), atol=0.005)


def test_signed_weights_recover_the_signal():
    """Signal N(0, 1) under a background N(2, 1): the map fitted with weights is the identity.

    Seed 34, 100 000 events; the tolerance 0.1 is over 5 standard errors (at most 0.019): chance of failure below 1e-5.
    """
    rng, n = np.random.default_rng(34), 100_000
    signal = rng.random(n) < 0.5
    values = np.where(signal, rng.normal(0, 1, n), rng.normal(2, 1, n))[:, None]
    weight = np.where(signal == (rng.random(n) < 0.8), 4 / 3, -1 / 3)
    z = torch.linspace(-1.5, 1.5, 7)[:, None]
    for kind in ("quantile", "standard"):
        np.testing.assert_allclose(fit(values, weight, kind).inverse(z), z, atol=0.1)
    assert float(fit(values, np.ones(n), "standard").inverse(z)[3]) > 0.9


@pytest.mark.parametrize("kind", ["quantile", "standard"])
def test_duplication_order_and_zero_weights(column, kind):
    values, weight = column
    chosen = np.arange(4000) % 2 == 0
    doubled = fit(values, weight * np.where(chosen, 2, 1), kind)
    duplicated = fit(np.concatenate([values, values[chosen]]), np.append(weight, weight[chosen]), kind)
    order = np.random.default_rng(1).permutation(4000)
    base, permuted = fit(values, weight, kind), fit(values[order], weight[order], kind)
    extra = fit(np.append(values, [values.mean(axis=0)], axis=0), np.append(weight, 0.0), kind)
    for one, other in ((doubled, duplicated), (base, permuted), (base, extra)):
        np.testing.assert_allclose(one.knots, other.knots, rtol=2e-6)
        np.testing.assert_allclose(one.slopes, other.slopes, rtol=1e-5)


@pytest.mark.parametrize("kind", ["quantile", "standard"])
def test_constant_column_is_named(kind):
    values = np.stack([np.arange(5.0), np.full(5, 2.5)], axis=1)
    with pytest.raises(ValueRangeError, match=r"column 'b': all 5 values are 2\.5, expected it to vary"):
        ColumnTransforms().fit_columns(values, np.ones(5), [kind, kind], ["a", "b"])


@pytest.mark.parametrize("kind", ["quantile", "standard"])
def test_weights_without_positive_sum(kind):
    with pytest.raises(WeightError, match="expected a positive sum"):
        fit(np.arange(4.0)[:, None], np.array([1.0, -1.0, 1.0, -1.0]), kind)


def test_extreme_inputs_stay_finite():
    transform = fit(np.random.default_rng(35).normal(size=(1000, 1)), np.ones(1000), "quantile")
    z = transform(torch.tensor([[1e30], [-1e30]]))
    assert z.flatten().tolist() == [Z_CLIP, -Z_CLIP]
    assert torch.isfinite(transform.inverse(z)).all()


def test_no_columns():
    transform = ColumnTransforms().fit_columns(np.zeros((3, 0)), np.ones(3), [], [])
    assert transform(torch.zeros(3, 0)).shape == transform.inverse(torch.zeros(3, 0)).shape == (3, 0)


def test_columns_are_independent_of_each_other():
    rng = np.random.default_rng(36)
    table, weight = np.stack(list(shapes(4000, rng).values()), axis=1), np.ones(4000)
    kinds = ["quantile", "standard"] * 4
    whole = ColumnTransforms().fit_columns(table, weight, kinds, list("abcdefgh"))
    z = torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
    for j, kind in enumerate(kinds):
        alone = fit(table[:, [j]], weight, kind)
        assert torch.equal(alone.inverse(z[:, [j]]), whole.inverse(z)[:, [j]])
        x = torch.from_numpy(table)
        assert torch.equal(alone(x[:, [j]]), whole(x)[:, [j]])


def test_whitening_removes_the_correlations_of_the_weighted_species():
    """Background has the opposite correlation; seed 5, deviations are five standard errors (about 1e-5 by chance)."""
    rng = np.random.default_rng(5)
    signal = rng.multivariate_normal([1, 2], [[1, 0.8], [0.8, 1]], 20_000)
    background = rng.multivariate_normal([1, 2], [[1, -0.9], [-0.9, 1]], 20_000)
    cancelling = rng.multivariate_normal([1, 2], [[1, -0.9], [-0.9, 1]], 20_000)
    values = np.concatenate([signal, background, cancelling])
    weight = np.repeat([1.0, 0.5, -0.5], 20_000)
    fitted = ColumnTransforms().fit_columns(values, weight, ["quantile", "standard"], ["a", "b"], whiten=True)
    u = fitted(torch.from_numpy(signal)).numpy()
    np.testing.assert_allclose(np.cov(u.T), np.eye(2), atol=5 * np.sqrt(2 / 20_000) * 1.5)
    np.testing.assert_allclose(fitted.inverse(torch.from_numpy(u)).numpy(), signal, rtol=1e-4, atol=1e-4)


def test_whitening_survives_a_negative_eigenvalue():
    """Signed weights can make a covariance indefinite; the map stays finite and invertible."""
    rng = np.random.default_rng(6)
    values = rng.normal(size=(200, 3))
    weight = rng.normal(0.2, 1.0, 200)
    fitted = ColumnTransforms().fit_columns(values, weight, ["quantile"] * 3, ["a", "b", "c"], whiten=True)
    u = fitted(torch.from_numpy(values))
    assert torch.isfinite(u).all()
    inside = (u.abs() < 7.9).all(dim=1) & (torch.from_numpy(np.abs(values)) < 1).all(dim=1)
    np.testing.assert_allclose(fitted.inverse(u)[inside].numpy(), values[inside.numpy()], rtol=1e-3, atol=1e-3)


def with_atom(seed):
    """Two features, the second with an atom at a place and of a probability that depend on the seed."""
    rng = np.random.default_rng(seed)
    share, value = rng.uniform(0.02, 0.6), rng.choice([0.0, 1.0, 5.0, 100.0])
    a = rng.normal(size=3000)
    y = np.where(rng.random(3000) < share, value, rng.gamma(2, 1, 3000) * np.exp(0.3 * a) * (value or 1))
    x = np.stack([a, y], axis=1).astype(np.float32)
    return x, x[:, 1] == np.float32(value)


@pytest.mark.parametrize("seed", range(60))
def test_atoms_are_spread_and_come_back(seed):
    """All but the events that are clipped, at most 1 %."""
    x, at = with_atom(seed)
    fitted = ColumnTransforms().fit_columns(
        x, np.ones(3000), ["quantile"] * 2, ["a", "y"], whiten=True, bounds=[None, (0, None)]
    )
    u = fitted(torch.from_numpy(x))
    z = fitted.unwhiten(fitted.dequantize(u, torch.Generator().manual_seed(0)))[at, 1]
    assert np.mean(fitted.inverse(u).numpy()[at, 1] == x[at, 1]) > 0.99
    assert len(z.unique()) > 0.99 * len(z)
    low, high = fitted.intervals(torch.from_numpy(x[at][:1]))[:, 0, 1].tolist()
    middle = fitted.to_normal(torch.from_numpy(x[at][:1]))[0, 1]
    assert middle == pytest.approx((low + high) / 2)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_atom_of_any_size_is_spread_to_a_normal_distribution(share):
    """Also where it holds most events, as an isolation that is mostly 0.

    5000 events, seed 0: the largest difference of distribution functions is beyond 0.035 by chance with 1e-5 (KS).
    Spread evenly over the interval of z it would be 0.22, 0.48 and 0.82.
    """
    rng = np.random.default_rng(0)
    values = np.where(rng.random(5000) < share, 0.0, rng.exponential(1, 5000))[:, None].astype(np.float32)
    fitted = ColumnTransforms().fit_columns(values, np.ones(5000), ["quantile"], ["q"], whiten=True, bounds=[(0, None)])
    u = fitted.dequantize(fitted(torch.from_numpy(values)), torch.Generator().manual_seed(0))
    assert kstest(u[:, 0].numpy(), "norm").statistic < 0.035
    np.testing.assert_array_equal(fitted.inverse(u).numpy() == 0, values == 0)


def test_slope_above_an_atom_is_that_of_its_cell():
    """Not of the empty cells of the atom below, however near."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.where(rng.random(2000) < rng.uniform(0.01, 0.9), 0.0, rng.gamma(2, 1, 2000))[:, None]
        fitted = ColumnTransforms().fit_columns(
            values, np.ones(2000), ["quantile"], ["q"], whiten=True, bounds=[(0, None)]
        )
        x = torch.tensor([[1e-30], [1e-17], [1e-9]])
        slope = fitted.log_slope(x, fitted.intervals(x))
        assert (slope.abs() < 15).all()
        torch.testing.assert_close(slope, slope[:1].expand(3, 1))


@pytest.mark.parametrize("weight", [1.0, 40.0])
def test_one_event_of_large_weight_is_no_atom(weight):
    """As the highest event of a bootstrap copy: nothing is capped there, neither alone nor twice in the sample."""
    values = np.append(np.random.default_rng(3).normal(size=(4000, 1)), [[4.5]], axis=0)
    signed = np.append(np.random.default_rng(4).normal(0.7, 1.0, 4000), weight)
    for copies in (1, 2):
        parts = np.append(signed[:-1], np.full(copies, weight / copies))
        transform = fit(np.append(values[:-1], np.full((copies, 1), 4.5), axis=0), parts, "quantile")
        assert not transform.is_discrete
        assert transform.inverse(torch.tensor([[6.0]])).item() > 4.5
    several = fit(np.append(values, np.full((9, 1), 4.5), axis=0), np.append(signed, np.full(9, 5.0)), "quantile")
    assert several.is_discrete
    assert several.inverse(torch.tensor([[4.0]])).item() == 4.5


@pytest.mark.parametrize("n", [300, 900, 6000])
@pytest.mark.parametrize("kind", ["quantile", "integer"])
@pytest.mark.parametrize("signed", [False, True])
def test_bounds_hold_where_one_event_has_several_knots(n, kind, signed):
    """Few events in a tail at a bound; seed of the sample."""
    rng = np.random.default_rng(n)
    values = rng.beta(1, 2, (n, 1)) if kind == "quantile" else rng.poisson(2.0, (n, 1)).clip(0, 9).astype(float)
    high = 1.0 if kind == "quantile" else 9.0
    weight = rng.normal(0.7, 1.0, n) if signed else rng.poisson(1.0, n).astype(float)
    transform = ColumnTransforms().fit_columns(values, weight, [kind], ["c"], bounds=[(0.0, high)])
    step = 0.5 if kind == "integer" else 0.0
    assert transform.knots.min() >= -step
    assert transform.knots.max() <= high + step
    generated = transform.inverse(torch.linspace(-8, 8, 2001)[:, None])
    assert generated.min() >= 0
    assert generated.max() <= high
    assert torch.all(generated.diff(dim=0) >= 0)


def test_gradient_of_bounded_columns_is_finite():
    """With a bound on one side, with values at a bound, and far beyond the last knots."""
    rng = np.random.default_rng(3)
    x = np.abs(rng.normal(size=(2000, 3)))
    x[:500, 1] = 0.0
    columns = Columns(
        {"a": Column(bounds=(0.0, None)), "b": Column(bounds=(0.0, None)), "c": Column(bounds=(0.0, 9.0))}, {}
    )
    n = np.arange(2000, dtype=np.uint64)
    context = np.empty((2000, 0), np.float32)
    fitted = ColumnTransforms().fit(Events(x.astype(np.float32), context, np.ones(2000), n, n), columns)
    u = (3 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    fitted.inverse(u, torch.empty(1000, 0)).sum().backward()
    assert torch.isfinite(u.grad).all()
