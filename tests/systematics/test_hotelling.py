"""Chi2 and intervals with few replicas: toys.

Each p-value of a Kolmogorov-Smirnov test below has a chance of 1e-3 to fail at another seed if the method is exact;
seeds are fixed, and the approximations for several sources are allowed to be off by the distance that the text states.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, chi2, f, kstest, t

from calorefine.errors import ConfigError, UncertaintyWarning
from calorefine.systematics import ObservableBins, Systematics, assemble
from calorefine.systematics.bin_groups import groups, most_directions
from calorefine.systematics.hotelling import effective_dof, hartlap_factor, hotelling, whiten
from calorefine.systematics.sources import from_replicas

TOYS = 400


def layout(*sizes):
    return {f"h{i}": ObservableBins(np.arange(size + 1.0)) for i, size in enumerate(sizes)}


def correlated(n):
    return np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / 3) * np.outer(*[np.linspace(1, 3, n)] * 2)


def toy(rng, bins, k, known, root):
    """One experiment: truth 100 in all bins."""
    n = len(root)
    nominal = 100 + root @ rng.normal(size=n) + np.sqrt(known) * rng.normal(size=n)
    replicas = 100 + rng.normal(size=(k, n)) @ root.T
    return assemble(nominal, bins, calibration=replicas, generated=known * np.eye(n))


@pytest.mark.parametrize("known", [0.0, 0.3, 3.0])
@pytest.mark.parametrize(("sizes", "k"), [((12, 8), 60), ((12, 8), 20), ((20, 20, 20), 60)])
def test_p_values_are_flat(sizes, k, known):
    rng = np.random.default_rng([sum(sizes), k, int(10 * known)])
    root = np.linalg.cholesky(correlated(sum(sizes)))
    found = [toy(rng, layout(*sizes), k, known, root) for _ in range(TOYS)]
    results = [one.chi2(one.nominal - 100) for one in found]
    distance = kstest([one.p_value for one in results], "uniform")
    if known == 0:
        assert distance.pvalue > 1e-3
    assert distance.statistic < 0.05 * (known > 0) + 1.95 / np.sqrt(TOYS)  # 1.95: Kolmogorov's quantile at 1e-3
    assert results[0].ndf == min(sum(sizes), most_directions(k - 1))


def test_a_naive_chi2_is_not_flat():
    """The toys can tell: p-values of a chi2 distribution with the inverse of the sample covariance."""
    rng = np.random.default_rng(2)
    root = np.linalg.cholesky(correlated(20))
    found = [toy(rng, layout(20), 60, 0.0, root).only("h0") for _ in range(100)]
    naive = [chi2.sf((one.nominal - 100) @ np.linalg.solve(one.total, one.nominal - 100), 20) for one in found]
    assert kstest(naive, "uniform").pvalue < 1e-6


def test_directions_chosen_by_the_replicas_are_not_flat():
    """Why directions are fixed: principal components of the replicas that are tested as if they had been."""
    rng = np.random.default_rng(3)
    root = np.linalg.cholesky(correlated(60))
    p_values = []
    for _ in range(100):
        one = toy(rng, layout(60), 20, 0.0, root)
        _, vectors = np.linalg.eigh(one.total)
        p_values.append(one.chi2(one.nominal - 100, directions=vectors[:, -7:].T).p_value)
    assert kstest(p_values, "uniform").pvalue < 1e-3


@pytest.mark.parametrize("known", [0.0, 3.0])
@pytest.mark.parametrize("level", [0.6827, 0.9545])
def test_intervals_of_20_replicas_cover(level, known):
    """One bin per toy, so that toys are independent; two-sided, chance of 1e-3 to fail at another seed."""
    rng = np.random.default_rng([5, int(known)])
    n, covered = 200, 0
    for _ in range(10):  # 200 independent bins at once; only the diagonal of the covariance is read
        nominal = rng.normal(size=n) + np.sqrt(known) * rng.normal(size=n)
        one = assemble(nominal, layout(n), calibration=rng.normal(size=(20, n)), generated=known * np.eye(n))
        low, high = one.interval(level)
        covered += int(np.sum((low < 0) & (high > 0)))
    n *= 10
    assert binom.ppf(5e-4, n, level) <= covered <= binom.ppf(1 - 5e-4, n, level)


def test_one_bin_is_students_t():
    source = from_replicas("calibration", np.array([[1.0], [2.0], [4.0], [3.5]]))
    sigma = np.std([1, 2, 4, 3.5], ddof=1)
    found = hotelling(np.array([2.5]), [(source.covariance, source.dof)])
    assert found.p_value == pytest.approx(2 * t.sf(2.5 / sigma, 3))
    one = Systematics(np.array([1.0]), layout(1), {"calibration": source})
    assert one.interval(0.9)[1] == pytest.approx(1 + t.ppf(0.95, 3) * sigma)
    assert one.dof == pytest.approx(3)
    assert one.error_of_error == pytest.approx(1 / np.sqrt(6))


def test_one_source_is_hotelling_and_a_known_one_chi2():
    rng = np.random.default_rng(7)
    rows, d = rng.normal(size=(30, 5)), rng.normal(size=5)
    source = from_replicas("calibration", rows)
    value = d @ np.linalg.solve(np.cov(rows.T), d)
    found = hotelling(d, [(source.covariance, 29.0)])
    assert found.value == pytest.approx(value)
    assert found.p_value == pytest.approx(f.sf(value * 25 / (5 * 29), 5, 25))
    known = hotelling(d, [(source.covariance, np.inf)])
    assert (known.p_value, known.dof) == (pytest.approx(chi2.sf(value, 5)), np.inf)


def test_effective_dof_is_affine_invariant_and_welch_satterthwaite_in_one_bin():
    rng = np.random.default_rng(8)
    a, b = np.cov(rng.normal(size=(40, 4)).T), np.diag([1.0, 2.0, 3.0, 4.0])
    mix = rng.normal(size=(4, 4))
    one = effective_dof([(a, 12.0), (b, np.inf)], whiten(a + b).matrix)
    other = [(mix @ a @ mix.T, 12.0), (mix @ b @ mix.T, np.inf)]
    assert effective_dof(other, whiten(other[0][0] + other[1][0]).matrix) == pytest.approx(one)
    assert one > 12
    single = [(np.array([[2.0]]), 5.0), (np.array([[3.0]]), 7.0)]
    assert effective_dof(single, whiten(np.array([[5.0]])).matrix) == pytest.approx(25 / (4 / 5 + 9 / 7))


@pytest.mark.parametrize(("k", "n"), [(60, 20), (12, 20), (3, 20)])
def test_normalized_histograms_have_dependent_bins(k, n):
    """Rank n - 1, whatever K; p-values are flat: chance of 1e-3 to fail at another seed."""
    rng = np.random.default_rng([9, k])
    p_values, ndf = [], set()
    for _ in range(200):
        values = rng.normal(100, 10, (k + 1, n))
        values[0] = rng.normal(100, 10, n)
        values /= values.sum(axis=1, keepdims=True)
        one = assemble(values[0], layout(n), calibration=values[1:])
        found = one.chi2(values[0] - 1 / n)
        p_values.append(found.p_value)
        ndf.add(found.ndf)
    assert ndf == {min(n - 1, most_directions(k - 1))}
    assert kstest(p_values, "uniform").pvalue > 1e-3


def test_empty_bins_and_other_normalizations_are_told():
    rng = np.random.default_rng(10)
    replicas = np.hstack([rng.normal(size=(50, 3)), np.zeros((50, 1))])
    one = assemble(np.zeros(4), layout(4), calibration=replicas)
    assert one.chi2([1.0, 0, 0, 0]).ndf == 3
    with pytest.warns(UncertaintyWarning, match="1 bins without any uncertainty"):
        one.chi2([1.0, 0, 0, 1.0])
    shape = rng.normal(100, 5, (50, 3))
    shape /= shape.sum(axis=1, keepdims=True)
    with pytest.warns(UncertaintyWarning, match="1 combinations"):
        assemble(shape[0], layout(3), calibration=shape[1:]).chi2(0.1 * shape[0])


def test_groups_hold_every_bin_once():
    nominal = np.linspace(1, 2, 23)
    for g in range(1, 24):
        matrix = groups(nominal, [10, 1, 12], g)
        assert matrix.shape == (g, 23)
        np.testing.assert_array_equal((matrix > 0).sum(axis=0), 1)
        assert (matrix > 0).any(axis=1).all()
        assert all(np.all(np.diff(np.flatnonzero(row)) == 1) for row in matrix)


def test_more_directions_than_replicas_are_refused():
    one = assemble(np.zeros(8), layout(8), calibration=np.random.default_rng(0).normal(size=(20, 8)))
    assert one.chi2(np.ones(8), directions=np.eye(8)).ndf == 8
    few = assemble(np.zeros(8), layout(8), calibration=np.random.default_rng(0).normal(size=(6, 8)))
    assert few.chi2(np.ones(8)).ndf == 2
    with pytest.raises(ConfigError, match=r"no mean, expected at least 10; .* at least 11 replicas"):
        few.precision()
    with pytest.raises(ConfigError, match="8 directions, and a covariance with 5 degrees"):
        few.chi2(np.ones(8), directions=np.eye(8))


def test_hotelling_refuses_what_it_cannot_invert():
    with pytest.raises(ConfigError, match="4 directions, and a covariance with 3 degrees"):
        hotelling(np.ones(4), [(np.eye(4), 3.0)])


def test_precision_is_right_on_average():
    """Mean over 2000 inverses; each diagonal within five of its standard errors, the naive one is 20 % off."""
    rng = np.random.default_rng(11)
    truth = correlated(5)
    root = np.linalg.cholesky(truth)
    found = []
    for _ in range(2000):
        one = assemble(np.zeros(5), layout(5), calibration=rng.normal(size=(40, 5)) @ root.T)
        found.append(np.diag(root.T @ one.precision() @ root))
    errors = np.std(found, axis=0) / np.sqrt(2000)
    assert np.all(np.abs(np.mean(found, axis=0) - 1) < 5 * errors)
    assert np.all(np.abs(np.mean(found, axis=0) / hartlap_factor(39, 5) - 1) > 5 * errors)
