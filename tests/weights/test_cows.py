"""Spectator shapes that depend on features or context: found, and cured by terms or by bins where they can be."""

import json

import numpy as np
import pytest
from scipy.integrate import trapezoid

from calorefine.datasets import CorrelatedToy
from calorefine.errors import BranchError, ConfigError, EmptySelectionError, FactorizationError, FitError
from calorefine.stats import covariance, mean, sum_w2
from calorefine.weights import (
    Bernstein,
    Chebyshev,
    Exponential,
    Gaussian,
    SPlot,
    Sum,
    factorization_test,
    reject_if_dependent,
)

N = 20_000
EDGES = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def fit_of(background, **options):
    return SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": background}, **options)


def deviations(weight, toy, table):
    """Weighted mean and width of each feature against the truth, and the deviation in standard errors."""
    found = {}
    for name, (true_mean, true_width) in toy.signal_moments().items():
        values = table[name]
        width = np.sqrt(covariance(values[:, None], weight)[0, 0])
        error = np.sqrt(sum_w2(weight * (values - true_mean))) / weight.sum()
        spread = np.sqrt(sum_w2(weight * ((values - true_mean) ** 2 - true_width**2))) / weight.sum() / (2 * true_width)
        found[name] = (mean(values, weight) - true_mean, width - true_width)
        found[f"{name} pulls"] = ((mean(values, weight) - true_mean) / error, (width - true_width) / spread)
    return found


@pytest.fixture(scope="module")
def sloped():
    """Seed 21: the background's slope depends on its feature x."""
    toy = CorrelatedToy(background_dependence=2.0)
    return toy, toy.generate(N, seed=21)


@pytest.fixture(scope="module")
def shifted():
    """Seed 22: the signal's position depends on the context, which its feature x depends on too."""
    toy = CorrelatedToy(signal_dependence=0.1)
    return toy, toy.generate(N, seed=22)


def columns(table):
    return {name: table[name] for name in ("x", "y", "c")}


def test_dependence_of_the_background_is_rejected_and_biases_sweights(sloped):
    """The bias, -0.078 in the mean and +0.138 in the width of x (averages of 6 toys), is 5 and 8 times what one toy
    fluctuates by: the chance to miss half of it is below 0.5 %, and the p-value was below 1e-100 in each toy."""
    toy, table = sloped
    source = fit_of(Exponential())
    result = source.fit(table)
    tests = {test.column: test for test in factorization_test(source, table["m"], columns(table), result=result)}
    assert tests["x"].p_corrected < 1e-3
    assert tests["y"].p_corrected > 1e-3
    with pytest.raises(FactorizationError, match=r"depends on x: (?s:.)*several terms"):
        reject_if_dependent(list(tests.values()))
    bias = deviations(result.weights(table), toy, table)
    assert bias["x"] == pytest.approx((-0.078, 0.138), abs=0.04)


def test_enough_background_terms_are_not_biased(sloped):
    """Four polynomials: all means and widths within 4 standard errors (3e-4 to fail), factorization accepted (1e-3)."""
    toy, table = sloped
    source = fit_of(Bernstein(3))
    result = source.fit(table)
    tests = factorization_test(source, table["m"], columns(table), result=result)
    assert min(test.p_corrected for test in tests) > 1e-3
    found = deviations(result.weights(table), toy, table)
    for name in ("x", "y", "c"):
        assert np.all(np.abs(found[f"{name} pulls"]) < 4), name
    assert result.species == ("signal", "background")
    assert result.fits[0].terms["background"] == tuple(f"background_{k}" for k in range(4))


def test_dependence_of_the_signal_is_not_cured_by_terms_but_by_bins(shifted):
    """The width of c is biased by -0.0076 (average of 10 toys), 7 times what one toy fluctuates by."""
    toy, table = shifted
    for background in (Exponential(), Bernstein(3)):
        source = fit_of(background)
        result = source.fit(table)
        with pytest.raises(FactorizationError, match=r"depends on c: (?s:.)*in_bins_of"):
            reject_if_dependent(factorization_test(source, table["m"], columns(table), result=result))
        assert deviations(result.weights(table), toy, table)["c"][1] < -0.0038
    source = fit_of(Exponential(), in_bins_of={"c": EDGES})
    result = source.fit(table)
    tests = factorization_test(source, table["m"], columns(table), result=result)
    assert min(test.p_corrected for test in tests) > 1e-3
    found = deviations(result.weights(table), toy, table)
    for name in ("x", "y", "c"):
        assert np.all(np.abs(found[f"{name} pulls"]) < 4), name


def test_weights_of_species_with_terms_keep_the_sum_rules(sloped):
    _, table = sloped
    result = fit_of(Bernstein(3)).fit(table)
    weights = {name: result.weights(table, name) for name in result.species}
    np.testing.assert_allclose(sum(weights.values()), 1, atol=5e-3)
    for name, weight in weights.items():
        assert weight.sum() == pytest.approx(result.yields[name], rel=5e-3)
    fit = result.fits[0]
    assert fit.yield_error("background") > np.sqrt(fit.yields["background"])
    on_grid = fit.densities(np.linspace(0, 1, 2001))["background"]
    assert trapezoid(on_grid, dx=1 / 2000) == pytest.approx(fit.yields["background"], rel=1e-4)


def test_a_sum_of_one_flexible_shape_equals_that_shape():
    """Seed 23: a first-degree polynomial is Chebyshev(1) and Bernstein(1); the latter may vary, which costs n_eff."""
    table = CorrelatedToy().generate(5000, seed=23)
    one, two = fit_of(Chebyshev(1)).fit(table), fit_of(Bernstein(1)).fit(table)
    assert one.yields["signal"] == pytest.approx(two.yields["signal"], rel=1e-3)
    assert two.n_effective["signal"] < one.n_effective["signal"]


def test_terms_of_free_shapes():
    """Seed 24."""
    table = CorrelatedToy(background_dependence=2.0).generate(N, seed=24)
    background = Sum([Exponential(slope=-3.0), Exponential(slope=1.0)])
    result = fit_of(background).fit(table)
    assert result.fits[0].names[:3] == ("n_signal", "n_background_0", "n_background_1")
    assert result.yields["signal"] == pytest.approx(table["true_signal"].sum(), rel=0.1)


def test_bins_are_fitted_by_themselves(shifted):
    _, table = shifted
    source = fit_of(Exponential(), in_bins_of={"c": [0.0, 0.5, 0.9]})
    result = source.fit(table)
    weight = result.weights(table)
    low, outside = table["c"] < 0.5, table["c"] > 0.9
    alone = fit_of(Exponential()).fit({"m": table["m"][low]})
    np.testing.assert_array_equal(weight[low], alone.weights({"m": table["m"][low]}))
    assert np.all(weight[outside] == 0)
    assert result.n_outside_bins == outside.sum()
    assert weight.sum() == pytest.approx(result.yields["signal"], rel=1e-3)
    assert source.branches == {"m": "m", "c": "c"}
    assert weight.sum() ** 2 / sum_w2(weight) == pytest.approx(result.n_effective["signal"], rel=0.01)
    content = json.loads(json.dumps(result.to_dict()))
    assert [part["bin"] for part in content["bins"]] == ["0 <= c < 0.5", "0.5 <= c <= 0.9"]
    assert "--- 0 <= c < 0.5\n" in result.summary()


def test_errors_of_bins_name_the_bin(shifted):
    _, table = shifted
    with pytest.raises(EmptySelectionError, match=r"bin 1 <= c <= 2: spectator m: none of"):
        fit_of(Exponential(), in_bins_of={"c": [0.0, 1.0, 2.0]}).fit(table)
    few = {name: values[:40] for name, values in table.items()}
    with pytest.raises(FitError, match=r"bin 0.98 <= c"):
        fit_of(Exponential(), in_bins_of={"c": [0.0, 0.98, 1.0]}).fit(
            few | {"m": np.where(few["c"] > 0.98, 0.9, few["m"])}
        )
    with pytest.raises(BranchError, match=r"in_bins_of: 'cc' is not among .*; did you mean 'c'"):
        fit_of(Exponential(), in_bins_of={"cc": [0.0, 1.0]}).fit(table)


def test_multiplicity_reaches_the_bins():
    """Seed 25."""
    rng = np.random.default_rng(25)
    table = CorrelatedToy().generate(4000, seed=25)
    counts = rng.poisson(1, len(table["m"]))
    repeated = {name: np.repeat(values, counts) for name, values in table.items()}
    source = fit_of(Exponential(), in_bins_of={"c": [0.0, 0.5, 1.0]})
    once, again = source.fit(table, multiplicity=counts), source.fit(repeated)
    np.testing.assert_array_equal(once.weights(table), again.weights(table))
    near = source.fit(table, multiplicity=counts, near=source.fit(table))
    np.testing.assert_allclose(near.weights(table), once.weights(table), atol=5e-3)


def test_alternatives_have_weights_of_their_own(sloped):
    _, table = sloped
    others = {"polynomial": {"background": Bernstein(3)}, "line": {"background": Chebyshev(1)}}
    source = fit_of(Exponential(), alternatives=others)
    np.testing.assert_array_equal(source.alternative("polynomial").weights(table), fit_of(Bernstein(3)).weights(table))
    with pytest.raises(ConfigError, match="alternative 'lines' is not among polynomial, line; did you mean 'line'"):
        source.alternative("lines")
    with pytest.raises(ConfigError, match="species 'back' is not among signal, background"):
        fit_of(Exponential(), alternatives={"line": {"back": Chebyshev(1)}})
    with pytest.raises(ConfigError, match="alternative 'line' replaces no shape"):
        fit_of(Exponential(), alternatives={"line": {}})
