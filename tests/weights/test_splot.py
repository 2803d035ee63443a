"""Spectator fits find the truth; sWeights give one species of the whole; errors say what is wrong."""

import json
import pickle
import warnings
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import uproot
from scipy import stats as distributions

from calorefine.errors import (
    BranchError,
    ConfigError,
    EmptySelectionError,
    FitError,
    SumRuleWarning,
    ValueRangeError,
)
from calorefine.pages.figures.spectator import fit_figure
from calorefine.stats import covariance, mean, sum_w2
from calorefine.weights import (
    Chebyshev,
    CrystalBall,
    DoubleGaussian,
    DoubleSidedCrystalBall,
    Exponential,
    Gaussian,
    SPlot,
    WeightSource,
)
from calorefine.weights.source import EVENT
from calorefine.weights.spectator import _check_sum_rule

CALIBRATION = Path(__file__).parents[2] / "examples" / "data" / "electron_calibration.root"
RANGE = (2.6, 3.6)


def toy(rng, n_signal, n_background):
    """Spectator, control variable and truth; Poisson yields; independent within each species."""
    s, b = rng.poisson(n_signal), rng.poisson(n_background)
    tail = -np.log1p(-rng.random(b) * -np.expm1(-1 / 0.7)) * 0.7
    m = np.concatenate([rng.normal(3.1, 0.04, s), 2.6 + tail])
    x = np.concatenate([rng.normal(1.0, 0.1, s), rng.normal(0.7, 0.3, b)])
    return m, x, np.arange(s + b) < s


def simple(**options):
    return SPlot(spectator="m_gev", range=RANGE, species={"signal": Gaussian(), "background": Exponential()}, **options)


@pytest.fixture(scope="module")
def calibration():
    with uproot.open(CALIBRATION) as file:
        return file["events"].arrays(library="np")


@pytest.fixture(scope="module")
def electrons(calibration):
    species = {"signal": DoubleGaussian(), "background": Exponential()}
    return SPlot(spectator="m_ee_gev", range=RANGE, species=species).fit_spectator(calibration["m_ee_gev"])


def test_calibration_fit_finds_the_truth(electrons, calibration):
    """A fixed sample, so no chance; its deviations are those of one draw, below 4 standard deviations (6e-5 each)."""
    values, errors = np.array(electrons.values), np.array(electrons.errors)
    truth = [calibration["true_signal"].sum(), (calibration["true_signal"] == 0).sum(), 3.097, 0.030, 65 / 30, 0.7]
    assert np.all(np.abs(values[:6] - truth) < 4 * errors[:6])
    assert electrons.values[6] == pytest.approx(-0.007, abs=4 * electrons.errors[6])
    assert electrons.valid
    assert electrons.method == "unbinned"
    assert electrons.p_value > 1e-4
    assert electrons.at_limit == ()
    assert electrons.n_effective["signal"] == pytest.approx(10_700, rel=0.02)


@pytest.mark.parametrize(
    "column",
    ["e_over_p", "f_front", "f_back", "width_strip_mm", "f_core", "r_mid", "dx_mm", "p_gev", "x_in_cell_mm", "n_pv"],
)
def test_weighted_moments_are_those_of_true_signal(electrons, calibration, column):
    """A fixed sample; mean and variance within 4 standard deviations of a weighted sum (6e-5 each)."""
    weight, x = electrons.weights(calibration["m_ee_gev"]), calibration[column].astype(float)
    true = x[calibration["true_signal"] > 0]
    for weighted, exact in ((x, true.mean()), ((x - true.mean()) ** 2, true.var())):
        error = np.sqrt(sum_w2(weight * (weighted - exact))) / weight.sum()
        assert abs(mean(weighted, weight) - exact) < 4 * error


def test_sum_rules(electrons, calibration):
    m = calibration["m_ee_gev"]
    total = sum(electrons.weights(m, name) for name in electrons.yields)
    np.testing.assert_allclose(total, 1, atol=1e-3)
    for name, value in electrons.yields.items():
        assert electrons.weights(m, name).sum() == pytest.approx(value, rel=1e-3)
    assert max(electrons.sum_rule.values()) < 1e-3


def test_weights_follow_the_formula(electrons, calibration):
    m = calibration["m_ee_gev"].astype(float)
    densities = electrons.mixture.pdfs(m, electrons.values)
    ratio = densities / (np.array(list(electrons.yields.values())) @ densities)
    expected = np.linalg.inv(ratio @ ratio.T)[0] @ ratio
    np.testing.assert_allclose(electrons.weights(m), expected, rtol=1e-3, atol=1e-4)


def test_multiplicity_equals_repeating_events():
    """Seed 3."""
    rng = np.random.default_rng(3)
    m = toy(rng, 1000, 2000)[0]
    counts = rng.poisson(1, len(m))
    once, repeated = simple().fit_spectator(m, multiplicity=counts), simple().fit_spectator(np.repeat(m, counts))
    np.testing.assert_array_equal(once.weights(m), repeated.weights(m))
    assert (counts * once.weights(m)).sum() == pytest.approx(once.yields["signal"], rel=1e-3)
    assert once.n_events == counts.sum()


def test_replica_differs_from_nominal_only_by_its_fit():
    rng = np.random.default_rng(4)
    m = toy(rng, 1000, 2000)[0]
    ones = simple().weights({"m_gev": m}, multiplicity=np.ones(len(m)))
    np.testing.assert_array_equal(ones, simple().weights({"m_gev": m}))


def test_binned_fit_agrees_with_unbinned():
    """Seed 5; the same events, so they differ by far less than their errors."""
    m = toy(np.random.default_rng(5), 4000, 8000)[0]
    unbinned, binned = simple().fit_spectator(m), simple(max_unbinned=1000).fit_spectator(m)
    assert binned.method == "binned, 2000 bins"
    assert np.all(np.abs(np.subtract(binned.values, unbinned.values)) < 0.05 * np.array(unbinned.errors))
    np.testing.assert_allclose(binned.weights(m), unbinned.weights(m), atol=5e-3)


def test_pulls_of_fits_and_control_variable_close():
    """Seeds (6, 0..59): 60 toys of 400 + 800 events.

    Means of pulls within 4 / sqrt(60), widths within 0.4 (4 standard deviations) of 1: false alarm below 2e-3 for all
    twelve checks together.  Four fit parameters, then mean and variance of the control variable with the errors of a
    weighted sum.
    """
    pulls = []
    for seed in range(60):
        m, x, _ = toy(np.random.default_rng([6, seed]), 400, 800)
        fit = simple().fit_spectator(m)
        pull = (np.array(fit.values[:4]) - [400, 800, 3.1, 0.04]) / np.array(fit.errors[:4])
        weight = fit.weights(m)
        error = np.sqrt(sum_w2(weight * (x - 1.0))) / weight.sum()
        variance = covariance(x[:, None], weight)[0, 0]
        spread = np.sqrt(sum_w2(weight * ((x - 1.0) ** 2 - 0.01))) / weight.sum()
        pulls.append([*pull, (mean(x, weight) - 1.0) / error, (variance - 0.01) / spread])
    center, width = np.mean(pulls, axis=0), np.std(pulls, axis=0)
    assert np.all(np.abs(center) < 4 / np.sqrt(60))
    assert np.all(np.abs(width - 1) < 0.4)


@pytest.mark.parametrize("signal", [DoubleGaussian(), CrystalBall(), DoubleSidedCrystalBall(), Gaussian()])
@pytest.mark.parametrize("background", [Exponential(), Chebyshev(2)])
def test_each_pair_of_shapes_fits_the_calibration_sample(calibration, signal, background):
    splot = SPlot(spectator="m_ee_gev", range=RANGE, species={"signal": signal, "background": background})
    fit = splot.fit_spectator(calibration["m_ee_gev"])
    assert fit.yields["signal"] == pytest.approx(13_949, rel=0.12)
    assert max(fit.sum_rule.values()) < 5e-3


def test_three_species():
    """Seed 7; yields within 5 standard deviations (6e-7 each)."""
    rng = np.random.default_rng(7)
    m = np.concatenate([toy(rng, 3000, 6000)[0], rng.normal(3.4, 0.04, 1500)])
    species = {"signal": Gaussian(), "excited": Gaussian(mean=3.4), "background": Exponential()}
    fit = SPlot(spectator="m_gev", range=RANGE, species=species).fit_spectator(m)
    for name, truth in (("signal", 3000), ("excited", 1500), ("background", 6000)):
        assert abs(fit.yields[name] - truth) < 5 * fit.errors[list(species).index(name)]
    np.testing.assert_allclose(sum(fit.weights(m, name) for name in species)[(m > 2.6) & (m < 3.6)], 1, atol=1e-3)


def test_events_outside_the_range_weigh_nothing():
    m = np.append(toy(np.random.default_rng(8), 1000, 2000)[0], [0.0, 9.0, np.inf])
    fit = simple().fit_spectator(m)
    assert np.all(fit.weights(m)[-3:] == 0)
    assert fit.n_outside >= 3


def test_report_pickles_and_serializes(electrons, calibration):
    m = calibration["m_ee_gev"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(electrons)).weights(m), electrons.weights(m))
    read = json.loads(json.dumps(electrons.to_dict(), allow_nan=False))
    assert read["yields"]["signal"] == electrons.yields["signal"]
    assert "n_signal" in electrons.summary()
    assert "unbinned" in electrons.summary()


def test_figure_has_fit_and_pulls(electrons, tmp_path):
    figure = fit_figure(electrons)
    figure.savefig(tmp_path / "fit.png")
    assert [axes.get_ylabel() for axes in figure.axes] == ["events / 0.01 GeV", "pull"]


def test_yaml_makes_an_splot():
    """The configuration schema is the constructor."""
    text = """
    weights:
      class_path: calorefine.weights.SPlot
      init_args:
        spectator: m_ee_gev
        range: [2.6, 3.6]
        species:
          signal:
            class_path: calorefine.weights.DoubleGaussian
            init_args: {mean: 3.097, limits: {mean: [3.0, 3.2]}, fixed: [offset]}
          background:
            class_path: calorefine.weights.Exponential
    """
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--weights", type=WeightSource)
    made = parser.instantiate(parser.parse_string(text)).weights
    assert made.range == RANGE
    assert made.species["signal"].fixed == ("offset",)
    assert made.branches == {"m_ee_gev": "m_ee_gev"}


def test_nan_is_counted():
    with pytest.raises(ValueRangeError, match="m_gev: 2 of 5 values are NaN"):
        simple().fit_spectator(np.array([3.0, np.nan, 3.1, np.nan, 3.2]))


def test_nothing_in_the_range_tells_where_the_events_are():
    with pytest.raises(EmptySelectionError, match=r"none of 2 events is in the range \[2.6, 3.6\], they lie in \[3000"):
        simple().fit_spectator(np.array([3000.0, 3100.0]))


@pytest.mark.parametrize("counts", [np.ones(3), np.full(100, 0.5), np.full(100, -1)])
def test_multiplicities_are_counts(counts):
    with pytest.raises(ValueRangeError, match="multiplicity"):
        simple().fit_spectator(np.full(100, 3.1), multiplicity=counts)


def test_options_are_checked():
    shapes = {"signal": Gaussian(), "background": Exponential()}
    with pytest.raises(ConfigError, match=r"range of the spectator m is \[3.6, 2.6\]"):
        SPlot(spectator="m", range=(3.6, 2.6), species=shapes)
    with pytest.raises(ConfigError, match="did you mean 'signal'"):
        SPlot(spectator="m", range=RANGE, species=shapes, target="signl")
    with pytest.raises(ConfigError, match="at least two species"):
        SPlot(spectator="m", range=RANGE, species={"signal": Gaussian()})
    with pytest.raises(BranchError, match="did you mean 'M_GeV'"):
        simple().weights({"M_GeV": np.ones(3)})


def test_sum_rule_warns_then_raises():
    weights, half = {"signal": np.full(1000, 0.5), "background": np.full(1000, 0.5)}, 500.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _check_sum_rule(weights, {"signal": half, "background": half}, "m")["event"] == 0
    with pytest.warns(SumRuleWarning, match="sum rule for signal is off by 0.0099"):
        _check_sum_rule(weights, {"signal": 505.0, "background": half}, "m")
    with pytest.raises(FitError, match="physics/0402083"):
        _check_sum_rule(weights, {"signal": 600.0, "background": half}, "m")


def test_species_without_events_is_named():
    """Seed 10: no background at all."""
    with pytest.raises(FitError, match="species 'background': its fitted yield is"):
        simple().fit_spectator(np.random.default_rng(10).normal(3.1, 0.03, 3000))


def test_parameter_at_a_limit_is_reported():
    """Seed 16: a peak of width 0.04 that must be narrower than 0.03."""
    species = {"signal": Gaussian(limits={"width": (0.01, 0.03)}), "background": Exponential()}
    fit = SPlot(spectator="m_gev", range=RANGE, species=species).fit_spectator(
        toy(np.random.default_rng(16), 2000, 2000)[0]
    )
    assert fit.at_limit == ("signal.width",)
    assert "AT LIMIT" in fit.summary()


def test_fit_that_can_not_work_says_so():
    """Two species of the same shape can't be told apart."""
    shapes = {"signal": Exponential(-1.0, fixed=("slope",)), "background": Exponential(-1.0, fixed=("slope",))}
    with pytest.raises(FitError, match=r"same shape|did not converge"):
        SPlot(spectator="m", range=RANGE, species=shapes).fit_spectator(toy(np.random.default_rng(9), 0, 500)[0])


def test_candidates_of_an_event_count_once_in_errors_and_chi2():
    """Seed 17: three copies of each event, the same mass.  Errors are those of single events, yields' three times.

    The scores' squares stand in for second derivatives: the same within 10 % at 9000 events (2 % in four toys).
    """
    m = toy(np.random.default_rng(17), 3000, 6000)[0]
    single, key = simple().fit({"m_gev": m}).fits[0], np.repeat(np.arange(len(m), dtype=np.uint64), 3)
    copies = simple().fit({"m_gev": np.repeat(m, 3), EVENT: key}).fits[0]
    naive = simple().fit({"m_gev": np.repeat(m, 3)}).fits[0]
    scale = np.array([3, 3, 1, 1, 1])
    np.testing.assert_allclose(copies.errors, scale * np.array(single.errors), rtol=0.1)
    np.testing.assert_allclose(np.array(naive.errors) * np.sqrt(3), copies.errors, rtol=0.1)
    assert copies.chi2 / copies.ndf == pytest.approx(naive.chi2 / naive.ndf / 3)
    assert copies.p_value > 1e-3 > naive.p_value
    assert copies.n_effective["signal"] == pytest.approx(single.n_effective["signal"], rel=0.01)


def test_pulls_with_several_candidates_close():
    """Seeds (18, 0..59): events of one to three candidates of one species, their masses alike in one half of them.

    Widths of the pulls of all parameters within 0.4 (4 standard deviations) of 1, means within 4 / sqrt(60): with
    other seeds a false alarm below 2e-3, with these the same but for last digits of fits; chi2 p-values uniform (KS
    above 1e-4).  Without keys the widths are 1.6 for the yields.
    """
    pulls, p_values = [], []
    for seed in range(60):
        rng = np.random.default_rng([18, seed])
        n = rng.poisson(1200)
        size = rng.integers(1, 4, n)
        key = np.repeat(np.arange(n, dtype=np.uint64), size)
        signal = (rng.random(n) < 1 / 3)[key]
        each, event = rng.random(len(key)), rng.random(n)[key]
        level = np.where((rng.random(n) < 0.5)[key], event, each)
        mass = np.where(signal, distributions.norm.ppf(level, 3.1, 0.04), 2.6 - 0.7 * np.log1p(-level))
        fit = simple().fit({"m_gev": mass, EVENT: key}).fits[0]
        inside = -np.expm1(-1 / 0.7)
        pulls.append((np.array(fit.values) - [800, 1600 * inside, 3.1, 0.04, -1 / 0.7]) / np.array(fit.errors))
        p_values.append(fit.p_value)
    center, width = np.mean(pulls, axis=0), np.std(pulls, axis=0)
    assert np.all(np.abs(center) < 4 / np.sqrt(60))
    assert np.all(np.abs(width - 1) < 0.4)
    assert distributions.kstest(p_values, "uniform").pvalue > 1e-4
