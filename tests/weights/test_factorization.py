"""The factorization test accepts what factorizes and names the column that does not."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uproot
from scipy import stats

from calorefine import Columns, EventDataModule
from calorefine.datasets import CorrelatedToy
from calorefine.errors import FactorizationError, FactorizationWarning, ValueRangeError
from calorefine.events import Column
from calorefine.weights import (
    Bernstein,
    DoubleGaussian,
    Exponential,
    Gaussian,
    Replica,
    SPlot,
    factorization_test,
    reject_if_dependent,
)
from calorefine.weights.factorization import FactorizationResult, _holm, column_edges

CALIBRATION = Path(__file__).parents[2] / "examples" / "data" / "electron_calibration.root"
FEATURES = ["e_over_p", "f_front", "f_back", "width_strip_mm", "f_core", "r_mid", "dx_mm"]
COLUMNS = [*FEATURES, "p_gev", "x_in_cell_mm", "n_pv"]
RANGE = (2.6, 3.6)


def toy(rng, n, *, slope=0.0, shift=0.0, double=True):
    """Spectator and columns: `u` may move shapes, `x` differs between species, `few` has three values."""
    signal, u = rng.random(2 * n) < 0.45, rng.uniform(-0.5, 0.5, 2 * n)
    x = np.where(signal, rng.normal(1.0, 0.1, 2 * n), rng.normal(0.8, 0.3, 2 * n))
    narrow = rng.random(2 * n) < (0.7 if double else 1.0)
    peak = np.where(narrow, rng.normal(3.097, 0.03, 2 * n), rng.normal(3.09, 0.065, 2 * n)) + shift * u
    m = np.where(signal, peak, 2.6 + rng.exponential(0.7 * (1 + slope * u)))
    kept = np.flatnonzero((m > RANGE[0]) & (m < RANGE[1]))[:n]
    columns = {"u": u, "x": x, "few": rng.integers(0, 3, 2 * n), "constant": np.ones(2 * n)}
    return m[kept], {name: values[kept] for name, values in columns.items()}


def splot(signal=None):
    return SPlot(
        spectator="m", range=RANGE, species={"signal": signal or DoubleGaussian(), "background": Exponential()}
    )


@pytest.mark.parametrize("dependence", [{"slope": 0.7}, {"shift": 0.015}])
def test_dependence_is_found_and_named(dependence):
    """Seed 11, 31 000 events: rejected at p < 1e-3; the largest p-value of ten toys with weaker dependence (0.6, 0.012)
    was 1e-5.  The other three columns are rejected by chance below 3e-4."""
    m, columns = toy(np.random.default_rng(11), 31_000, **dependence)
    results = factorization_test(splot(), m, columns)
    assert results[0].p_corrected < 1e-3
    assert results[0].largest[0] == ("background.slope" if "slope" in dependence else "signal.mean")
    with pytest.raises(FactorizationError, match="spectator's shape depends on u: chi2/ndf"):
        reject_if_dependent(results)
    with pytest.warns(FactorizationWarning, match="spectator's shape depends on u: chi2/ndf"):
        reject_if_dependent(results, raise_below=0)
    assert all(result.p_corrected > 1e-4 for result in results[1:])


def test_calibration_sample_factorizes():
    """A fixed sample in which it holds by construction."""
    with uproot.open(CALIBRATION) as file:
        data = file["events"].arrays([*COLUMNS, "m_ee_gev"], library="np")
    results = factorization_test(splot(), data["m_ee_gev"], {name: data[name] for name in COLUMNS})
    assert [result.column for result in results] == COLUMNS
    assert min(result.p_corrected for result in results) > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reject_if_dependent(results)


def test_p_values_are_uniform_without_dependence():
    """Seeds (12, 0..29), 30 toys of 3000 events: Kolmogorov-Smirnov above 1e-4, the chance to fail."""
    p_values = []
    for seed in range(30):
        m, columns = toy(np.random.default_rng([12, seed]), 3000, double=False)
        p_values += [r.p_value for r in factorization_test(splot(Gaussian()), m, {"x": columns["x"]}, n_bins=3)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_few_valued_and_constant_columns():
    """Seed 13."""
    m, columns = toy(np.random.default_rng(13), 5000)
    results = {result.column: result for result in factorization_test(splot(), m, columns)}
    assert results["few"].edges == (0, 1, 2, 2)
    assert results["few"].ndf == 6
    assert (results["constant"].ndf, results["constant"].p_value) == (0, 1.0)


def test_bins_without_a_species_do_not_test_it():
    """Seed 14: a column that all but separates the species."""
    m, _ = toy(np.random.default_rng(14), 5000)
    near = np.abs(m - 3.095) < 0.1
    result = factorization_test(splot(), m, {"tag": np.where(near, 1.0, 0.0)})[0]
    assert None in result.deviations["signal.mean"]


def test_column_edges():
    np.testing.assert_array_equal(column_edges(np.arange(100.0), 4), [0, 24, 49, 74, 99])
    np.testing.assert_array_equal(column_edges(np.array([7.0, 7.0]), 5), [7, 7])
    np.testing.assert_array_equal(column_edges(np.repeat([0.0, 1.0, 2.0], [50, 50, 1]), 5), [0, 1, 2])


def test_column_with_a_heavy_value_has_a_bin_for_it():
    values = np.concatenate([np.zeros(820), np.linspace(0.1, 1, 180)])
    assert column_edges(values, 5)[0] == 0
    assert column_edges(values, 5)[1] == pytest.approx(0.1)
    assert len(column_edges(values, 5)) == 6
    top = column_edges(1 - values, 5)
    np.testing.assert_array_equal(top[-2:], [1, 1])


def test_dependence_on_a_column_of_mostly_zeros_is_found():
    """Seed 15: as flag 0/1 and as a continuous column above an atom; by chance below 1e-3."""
    rng = np.random.default_rng(15)
    m, _ = toy(rng, 10_000)
    hits = np.where(rng.random(len(m)) < 0.82, 0.0, rng.exponential(1.0, len(m)) + 0.1)
    shifted = np.where((hits > 0) & (np.abs(m - 3.095) < 0.15), m + 0.03, m)
    for column in (hits, (hits > 0).astype(float)):
        assert factorization_test(splot(), shifted, {"hits": column})[0].p_corrected < 1e-3


def test_untested_columns_are_named():
    result = FactorizationResult("few", 0.0, 0, 1.0, 1.0, (0.0, 1.0, 2.0))
    with pytest.warns(FactorizationWarning, match="not tested whether the spectator's shape depends on few"):
        reject_if_dependent([result])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reject_if_dependent([replace(result, edges=(1.0, 1.0))])


@pytest.mark.parametrize("degree", [2, 3])
def test_null_toys_with_terms(degree):
    """Seeds (16, 0..39), 40 toys of 3000 events, three columns: none fails to converge; no p below 2e-5 (chance 2e-3),
    not more than 9 of 120 below 0.02 (chance 2e-3).  A straight line does not describe the exponential."""
    p_values = []
    for seed in range(40):
        table = CorrelatedToy().generate(3000, seed=[16, seed])
        source = SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": Bernstein(degree)})
        tests = factorization_test(source, table["m"], {name: table[name] for name in ("x", "y", "c")}, n_bins=3)
        p_values += [test.p_value for test in tests]
    assert min(p_values) > 2e-5
    assert np.sum(np.array(p_values) < 0.02) <= 9


@pytest.mark.parametrize(("dependence", "degree"), [(2.0, 1), (6.0, 2)])
def test_too_few_terms_are_found(dependence, degree):
    """Seed 17, 20 000 events: rejected at p < 1e-3, with the further term as the largest deviation."""
    table = CorrelatedToy(background_dependence=dependence).generate(20_000, seed=17)
    source = SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": Bernstein(degree)})
    test = factorization_test(source, table["m"], {"x": table["x"]})[0]
    assert test.p_corrected < 1e-3
    assert test.largest[0] == "further term 1"


def test_holm():
    assert _holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_bad_columns_are_named():
    m, columns = toy(np.random.default_rng(15), 2000)
    with pytest.raises(ValueRangeError, match="column u: 1 of 2000 values are NaN"):
        factorization_test(splot(), m, {"u": np.append(columns["u"][1:], np.nan)})
    with pytest.raises(ValueRangeError, match="column u has shape"):
        factorization_test(splot(), m, {"u": columns["u"][1:]})


def interaction(seed, n, shift):
    """Spectator and columns: the peak moves with the product of two columns, and with none of them alone."""
    rng = np.random.default_rng(seed)
    signal, u, v, z = rng.random(2 * n) < 0.45, *rng.uniform(-1, 1, (3, 2 * n))
    m = np.where(signal, rng.normal(3.1 + shift * u * v, 0.04), 2.6 + rng.exponential(0.7, 2 * n))
    kept = np.flatnonzero((m > RANGE[0]) & (m < RANGE[1]))[:n]
    return m[kept], {"u": u[kept], "v": v[kept], "z": z[kept]}


def test_two_columns_that_act_only_together_are_found():
    """Seed 18, 10 000 events: found below 1e-9 (1e-13 in four toys); single columns below 1e-3 by chance in 3e-3."""
    m, columns = interaction(18, 10_000, 0.02)
    tests = {test.column: test for test in factorization_test(splot(Gaussian()), m, columns, pairs=True)}
    assert list(tests) == ["u", "v", "z", "u and v", "u and z", "v and z"]
    assert tests["u and v"].p_corrected < 1e-9
    assert min(test.p_corrected for name, test in tests.items() if name != "u and v") > 1e-3
    with pytest.raises(FactorizationError, match=r"depends on u and v: .* signal.mean by .* for u in \[.* and v in \["):
        reject_if_dependent(list(tests.values()))


def test_false_alarms_of_pairs():
    """Seeds (19, 0..79), 80 toys of 3000 events with ten tests each, one column of which separates the species.

    No corrected p-value below 1e-5 (chance 8e-4), at most 13 below 0.05 (4 are expected; chance 1e-4).
    """
    smallest = []
    for seed in range(80):
        m, columns = toy(np.random.default_rng([19, seed]), 3000, double=False)
        columns = {"few": columns["few"], "u": columns["u"], "x": columns["x"], "m": columns["x"] + columns["u"]}
        tests = factorization_test(splot(Gaussian()), m, columns, pairs=True)
        smallest.append(min(test.p_corrected for test in tests))
    assert min(smallest) > 1e-5
    assert np.sum(np.array(smallest) < 0.05) <= 13


def test_candidates_of_an_event_are_not_independent():
    """Seeds (20, 0..29): each event twice; p-values with keys are uniform (KS above 1e-4), without they are not."""
    p_values = np.zeros((2, 30))
    for seed in range(30):
        m, columns = toy(np.random.default_rng([20, seed]), 3000, double=False)
        twice, u, key = np.repeat(m, 2), {"u": np.repeat(columns["u"], 2)}, np.repeat(np.arange(3000), 2)
        result = splot(Gaussian()).fit({"m": twice})
        for row, known in zip(p_values, (key.astype(np.uint64), None), strict=True):
            row[seed] = factorization_test(splot(Gaussian()), twice, u, n_bins=3, result=result, key=known)[0].p_value
    assert stats.kstest(p_values[0], "uniform").pvalue > 1e-4
    assert stats.kstest(p_values[1], "uniform").pvalue < 1e-4


def test_cells_without_events_are_no_fault():
    """Two columns that are nearly one leave cells of a pair empty, or with a few events; no chance in it."""
    m, columns = toy(np.random.default_rng(22), 400, double=False)
    tests = factorization_test(splot(Gaussian()), m, {"u": columns["u"], "again": columns["u"]}, pairs=True)
    assert all(np.isfinite(test.chi2) and 0 <= test.p_value <= 1 for test in tests)


def test_training_refuses_weights_that_splot_refuses(root_file):
    """Seed 21, 10 000 events: a peak whose width depends on a feature; found below 1e-3 in ten of ten toys."""
    m, columns = interaction(21, 10_000, 0.0)
    wide = np.abs(m - 3.1) < 0.12
    m = np.where(wide, 3.1 + (m - 3.1) * (1 + 0.4 * columns["u"]), m)
    path = root_file({"m": m, **columns, "run": np.ones(len(m), np.int64), "event": np.arange(len(m))})
    features = {name: Column(bounds=(-1, 1)) for name in ("u", "v")}
    described = Columns(features=features, context={"z": None}, key=["run", "event"])
    given = {"files": str(path), "tree": "events", "columns": described, "weights": splot(Gaussian())}
    with pytest.raises(FactorizationError, match=r"depends on u: .*\n.*`dependence: warn` goes on"):
        EventDataModule(**given).setup()
    with pytest.warns(FactorizationWarning, match="depends on u"):
        data = EventDataModule(**given, dependence="warn")
        data.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FactorizationWarning)
        data.for_replica(Replica(1)).setup()
