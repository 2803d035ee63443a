"""Each kind of observable against its definition, and its delta method against toys."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from scipy import sparse
from scipy.stats import norm

from calorefine import stats
from calorefine.errors import ConfigError, ExpressionError, ValueRangeError, WeightError
from calorefine.observables import Efficiency, Histogram, Mean, Observable, Quantile, Regular, Weights, Width, measure
from calorefine.observables.grid import REACH, Grid, GridFinder

EDGES = [1.0, 3.0, 6.0, 9.5]
KINDS = {
    "histogram": Histogram("p", edges=EDGES),
    "shape": Histogram("p", edges=EDGES, normalize="unit"),
    "closed_shape": Histogram("p", edges=[0, 3, 6, 10], normalize="unit"),
    "efficiency": Efficiency("flag", "p", edges=EDGES),
    "mean": Mean("x", "p", edges=EDGES),
    "quantile": Quantile("x", "p", levels=[0.1, 0.5, 0.75], edges=EDGES),
    "width": Width("x", "p", edges=EDGES),
}
CENTRAL = [0.5 - 0.3413447460685, 0.5 + 0.3413447460685]


def in_bins(arrays):
    return [(arrays["p"] >= low) & (arrays["p"] < high) for low, high in pairwise(EDGES)]


def expected(arrays, w):
    """Each kind in plain numpy."""
    bins = in_bins(arrays)
    quantiles = [stats.quantile(arrays["x"][at], w[at], [0.1, 0.5, 0.75]) for at in bins]
    ends = [stats.quantile(arrays["x"][at], w[at], CENTRAL) for at in bins]
    closed = np.histogram(arrays["p"], [0, 3, 6, 10], weights=w)[0]
    return {
        "histogram": [w[at].sum() for at in bins],
        "shape": [w[at].sum() / w.sum() for at in bins],
        "closed_shape": closed / closed.sum(),
        "efficiency": [(w * arrays["flag"])[at].sum() / w[at].sum() for at in bins],
        "mean": [np.average(arrays["x"][at], weights=w[at]) for at in bins],
        "quantile": np.concatenate(quantiles),
        "width": [(high - low) / 2 for low, high in ends],
    }


def measured(source, **options):
    return measure(source, KINDS, weights=[Weights("w"), Weights("w_replica")], **options)


def test_values_are_those_of_plain_numpy(events, source):
    """Quantiles of signed weights are those of `stats.quantile` to within the sub-cells, 0.004 of the half-width."""
    arrays = events(20_000)
    found = measured(source(arrays))
    assert found.rows == ("w", "w_replica[0]", "w_replica[1]", "w_replica[2]", "w_replica[3]")
    for row, w in enumerate([arrays["w"], *arrays["w_replica"].T]):
        for name, values in expected(arrays, w).items():
            close = {"rtol": 1e-10} if name not in ("quantile", "width") else {"rtol": 0, "atol": 0.01}
            np.testing.assert_allclose(found.values[row, found.part(name)], values, **close, err_msg=name)


def test_quantiles_are_precise_where_the_density_is_smooth():
    """Exact sub-cell contents of a Gaussian: off by less than 1e-5 standard deviations."""
    one = Quantile("x", "p", levels=[0.01, 0.3, 0.9], edges=[0, 1])
    grid = Grid(np.full(3, 5.0), np.full(3, 2.0), -REACH, REACH, 4000, linear=False)
    cells = np.diff(norm.cdf(np.concatenate([[-np.inf], grid.edges()[1], [np.inf]]), 5, 2))
    sums = np.concatenate([np.zeros(4002), cells, np.zeros(4002)])
    np.testing.assert_allclose(one.with_grid(grid).values(sums), norm.ppf([0.01, 0.3, 0.9], 5, 2), atol=2e-5)


def sums_of(observable, arrays, w):
    """Sums of one weight, without files."""
    columns = [arrays[name] for name in observable.expressions()]
    cell, amounts = observable.fill(columns, [arrays[name] for name in observable.conditions()])
    amounts = [np.ones(len(w)) if amount is None else amount for amount in amounts]
    n = observable.cell_count
    sums = np.stack([np.bincount(cell, w * a, n) for a in amounts], axis=1).ravel()
    sums2 = np.stack([[np.bincount(cell, w**2 * a * b, n) for a in amounts] for b in amounts]).transpose(2, 0, 1)
    return sums, sums2


def covariance_of(one, sums, sums2):
    """By linear propagation, of independent events."""
    jacobian = one.jacobian(sums, sums2[:, 0, 0])
    return (jacobian @ sparse.block_diag(list(sums2), format="csr") @ jacobian.T).toarray()


@pytest.fixture(scope="module")
def toys(events):
    """Values (400, n) and mean covariance of each kind over samples of about 4000 events, 19 % of negative weight."""
    first = events(40_000, seed=11)
    ready = {name: with_cells(one, first) for name, one in KINDS.items()}
    found = {name: ([], []) for name in KINDS}
    rng = np.random.default_rng(11)
    for seed in range(400):
        arrays = events(int(rng.poisson(4000)), seed=100 + seed, k=0)
        for name, one in ready.items():
            sums, sums2 = sums_of(one, arrays, arrays["w"])
            found[name][0].append(one.values(sums))
            found[name][1].append(covariance_of(one, sums, sums2))
    return {name: (np.array(values), np.mean(covariances, axis=0)) for name, (values, covariances) in found.items()}


def with_cells(one, arrays):
    if not isinstance(one, Quantile):
        return one
    finder = GridFinder(one)
    finder.add(arrays["p"], arrays["x"])
    return one.with_grid(finder.grid(4000))


@pytest.mark.parametrize("name", list(KINDS))
def test_covariance_is_that_of_toys(toys, name):
    """Seeds 100 to 499.  A variance over 400 toys has an error of 7.1 %, a correlation one of 0.05.

    30 values and 48 correlations within 4.5 standard errors: less than 1 in 1000 sets of seeds would fail by accident.
    """
    values, covariance = toys[name]
    spread = np.cov(values.T)
    errors = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(np.diag(spread), errors**2, rtol=4.5 * 0.071)
    correlations = np.corrcoef(values.T), covariance / np.outer(errors, errors)
    np.testing.assert_allclose(*correlations, atol=4.5 * 0.05)


def test_a_closed_shape_has_one_exact_direction(toys):
    """Its values sum to 1."""
    values, covariance = toys["closed_shape"]
    np.testing.assert_allclose(values.sum(axis=1), 1)
    np.testing.assert_allclose(covariance.sum(axis=1), 0, atol=1e-15)


def numeric_jacobian(one, sums):
    """Derivatives (n_values, n_sums) by central differences."""
    found = np.empty((one.n_values, len(sums)))
    for k in range(len(sums)):
        step = np.zeros(len(sums))
        step[k] = 1e-4 * np.abs(sums).max()
        found[:, k] = (one.values(sums + step) - one.values(sums - step)) / (2 * step[k])
    return found


@pytest.mark.parametrize("name", ["histogram", "shape", "efficiency", "mean"])
def test_covariance_is_the_linear_one(events, name):
    """The analytic covariance is that of a numeric Jacobian, with the full matrix of second sums."""
    one, arrays = KINDS[name], events(5000, seed=5)
    sums, sums2 = sums_of(one, arrays, arrays["w"])
    full = np.zeros((len(sums), len(sums)))
    for k, block in enumerate(sums2):
        at = slice(k * one.n_amounts, (k + 1) * one.n_amounts)
        full[at, at] = block
    jacobian = numeric_jacobian(one, sums)
    linear = jacobian @ full @ jacobian.T
    np.testing.assert_allclose(covariance_of(one, sums, sums2), linear, rtol=1e-4, atol=1e-6 * linear.max())


def test_quantiles_at_atoms_and_of_few_events():
    arrays = {"p": np.full(5, 2.0), "x": np.array([0.0, 0.0, 0.0, 1.0, 4.0])}
    one = Quantile("x", "p", levels=[0.3, 0.7, 0.9], edges=[1, 3], range=(-1, 5), n_cells=6000)
    sums, sums2 = sums_of(one, arrays, np.ones(5))
    np.testing.assert_allclose(one.values(sums), [0, 1, 4], atol=1.01e-3)
    assert np.all(np.isfinite(covariance_of(one, sums, sums2)))


def test_values_off_the_grid_count_and_quantiles_there_are_refused():
    arrays = {"p": np.full(100, 2.0), "x": np.arange(100.0)}
    one = Quantile("x", "p", levels=[0.5], edges=[1, 3], range=(45, 55))
    sums, _ = sums_of(one, arrays, np.ones(100))
    assert sums.sum() == 100
    assert one.values(sums) == pytest.approx(49, abs=0.01)
    assert one.off_grid(sums).tolist() == [90]
    far = Quantile("x", "p", levels=[0.1, 0.5], edges=[1, 3], range=(45, 55))
    with pytest.raises(ValueRangeError, match=r"quantile 0.1 of 1 <= p <= 3 lies beyond \[45, 55\]; give a wider"):
        far.values(sums)


def test_bins_without_first_events_get_cells_of_all_together():
    arrays = {"p": np.linspace(1, 2, 1000), "x": np.linspace(-1, 1, 1000)}
    grid = with_cells(Quantile("x", "p", levels=[0.5], edges=[1, 2.5, 3]), arrays).grid
    assert grid.center[2] == grid.center[1]
    constant = with_cells(Quantile("x", "p", levels=[0.5], edges=[1, 2.5, 3]), {"p": arrays["p"], "x": np.ones(1000)})
    sums, _ = sums_of(constant, {"p": np.array([1.0, 2.7]), "x": np.ones(2)}, np.ones(2))
    np.testing.assert_allclose(constant.values(sums), 1, atol=1e-4)


def test_sums_that_are_not_positive_name_bin_and_row():
    one = Efficiency("flag", "p", edges=EDGES)
    sums = np.ones((3, one.cell_count))
    sums[1, 4:6] = -1.5
    message = r"the weights of 3 <= p < 6 sum to -3 with b, expected a positive sum; take wider bins"
    with pytest.raises(WeightError, match=message):
        one.values(sums, rows=["a", "b", "c"])
    with pytest.raises(WeightError, match=r"of all events sum to -1 "):
        Histogram("p", edges=EDGES, normalize="unit").values(np.full((2, 5), -0.2))
    assert one.values(sums[0]) == pytest.approx(0.5)
    assert Histogram("p", edges=EDGES).values(-np.ones((2, 5))).tolist() == [[-1, -1, -1]] * 2


def test_edges_are_closed_on_the_left_and_at_the_end():
    found = Histogram("p", bins=Regular(2, 0, 1)).bin_of(np.array([-0.1, 0, 0.5, 1, 1.1, np.nextafter(0.5, 0)]))
    assert found.tolist() == [0, 1, 2, 2, 3, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Histogram("p"), ConfigError, "of 'p': neither of bins and edges given"),
        (lambda: Histogram("p", edges=[1, 2], bins=Regular(1, 0, 1)), ConfigError, "both of bins and edges"),
        (lambda: Histogram("p", edges=[2, 1]), ConfigError, r"edges \[2.0, 1.0\] found, expected two or more, incr"),
        (lambda: Histogram("p", edges=[1]), ConfigError, "expected two or more"),
        (lambda: Histogram("p", bins=Regular(0, 0, 1)), ConfigError, "0 bins found"),
        (lambda: Histogram("sqt(p)", edges=[1, 2]), ExpressionError, "did you mean 'sqrt'"),
        (lambda: Histogram("p", edges=[1, 2], selection="p >"), ExpressionError, "can't be parsed"),
        (lambda: Efficiency("p >", "p", edges=[1, 2]), ExpressionError, "can't be parsed"),
        (lambda: Mean("p +", "p", edges=[1, 2]), ExpressionError, "can't be parsed"),
        (lambda: Quantile("x", "p", levels=[0.5, 0.2], edges=[1, 2]), ConfigError, "levels .* expected increasing"),
        (lambda: Quantile("x", "p", levels=[], edges=[1, 2]), ConfigError, "levels"),
        (lambda: Width("x", "p", central=1.5, edges=[1, 2]), ConfigError, "levels"),
        (lambda: Width("x", "p", range=(2, 1), edges=[1, 2]), ConfigError, "range .* expected lowest < highest"),
        (lambda: Width("x", "p", n_cells=10, edges=[1, 2]), ConfigError, "n_cells 10 found, expected at least 2000"),
        (lambda: KINDS["width"].values(np.ones(4002 * 5)), ConfigError, "no sub-cells yet; give a range"),
    ],
)
def test_options_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


CONFIG = """
observables:
  e_over_p:
    class_path: Histogram
    init_args: {expression: e_over_p, bins: {n: 20, low: 0.5, high: 1.5}, selection: "p_gev > 2", normalize: unit}
  efficiency:
    class_path: Efficiency
    init_args: {passed: "e_over_p > 0.9 && f_core > 0.6", expression: p_gev, edges: [1, 2, 4, 8, 16]}
  mean: {class_path: Mean, init_args: {of: e_over_p, expression: p_gev, edges: [1, 2, 4]}}
  quantile: {class_path: Quantile, init_args: {of: e_over_p, expression: p_gev, levels: [0.1, 0.5], edges: [1, 2, 4]}}
  resolution:
    class_path: Width
    init_args: {of: e_over_p, expression: p_gev, edges: [1, 2, 4, 8, 16], title: momentum, range: [0, 2]}
"""


def parse(text):
    def verb(observables: dict[str, Observable]) -> dict[str, Observable]:
        return observables

    parser = ArgumentParser()
    parser.add_function_arguments(verb, as_positional=False)
    return parser.instantiate(parser.parse_string(text)).observables


def test_configuration_and_labels():
    found = parse(CONFIG)
    assert [type(one) for one in found.values()] == [Histogram, Efficiency, Mean, Quantile, Width]
    np.testing.assert_allclose(found["e_over_p"].edges, np.linspace(0.5, 1.5, 21))
    assert found["efficiency"].axis_label == "p_gev [GeV]"
    assert found["resolution"].axis_label == "momentum [GeV]"
    assert found["resolution"].labels()[::3] == ["1 <= p_gev < 2", "8 <= p_gev <= 16"]
    assert found["resolution"].value_label == "68.27 % half-width of e_over_p"
    assert found["quantile"].labels()[1] == "1 <= p_gev < 2, quantile 0.5"
    assert [len(one.labels()) == one.n_values for one in found.values()] == [True] * 5


def test_observables_go_through_json():
    """What `to_dict` gives makes the same observable again."""
    found = parse(CONFIG)
    again = parse(json.dumps({"observables": {name: one.to_dict() for name, one in found.items()}}))
    assert [one.to_dict() for one in again.values()] == [one.to_dict() for one in found.values()]
