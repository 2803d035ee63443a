"""Shapes are normalized on their range, agree with scipy, and guess start values."""

import numpy as np
import pytest
from scipy import integrate, stats

from calorefine.errors import ConfigError
from calorefine.weights import SPlot
from calorefine.weights.mixture import Mixture
from calorefine.weights.peaks import CrystalBall, DoubleGaussian, DoubleSidedCrystalBall, Gaussian
from calorefine.weights.polynomials import Bernstein, BernsteinTerm, Chebyshev
from calorefine.weights.resonances import BreitWigner, Voigt
from calorefine.weights.shapes import Exponential, Guess, Sum

LOW, HIGH = 2.6, 3.6
CASES = {
    "gaussian": (Gaussian(), (3.1, 0.03)),
    "gaussian beyond the range": (Gaussian(), (3.7, 0.2)),
    "double gaussian": (DoubleGaussian(), (3.1, 0.03, 2.2, 0.7, -0.01)),
    "crystal ball": (CrystalBall(), (3.1, 0.04, 1.2, 2.5)),
    "double-sided crystal ball": (DoubleSidedCrystalBall(), (3.1, 0.04, 1.2, 2.5, 1.7, 4.0)),
    "voigt": (Voigt(), (3.1, 0.03, 0.02)),
    "narrow voigt": (Voigt(), (3.1, 0.002, 0.001)),
    "voigt beyond the range": (Voigt(), (3.7, 0.1, 0.2)),
    "breit-wigner": (BreitWigner(), (3.1, 0.03, 0.02)),
    "wide breit-wigner": (BreitWigner(), (3.0, 0.01, 0.5)),
    "exponential": (Exponential(), (-1.4,)),
    "steep rising exponential": (Exponential(), (90.0,)),
    "flat exponential": (Exponential(), (0.0,)),
    "chebyshev": (Chebyshev(3), (-0.3, 0.2, 0.1)),
    "chebyshev raised": (Chebyshev(2), (-0.3, 1.5)),
    "first bernstein": (BernsteinTerm(0, 3), ()),
    "middle bernstein": (BernsteinTerm(2, 4), ()),
    "last bernstein": (BernsteinTerm(3, 3), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_density_is_positive_and_integrates_to_one(name):
    shape, params = CASES[name]
    m = np.linspace(LOW, HIGH, 20_001)
    density = shape.pdf(m, LOW, HIGH, *params)
    assert np.all(density >= 0)
    assert integrate.simpson(density, x=m) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_cdf_is_the_integral_of_the_density(name):
    shape, params = CASES[name]
    m = np.linspace(LOW, HIGH, 20_001)
    numeric = integrate.cumulative_simpson(shape.pdf(m, LOW, HIGH, *params), x=m, initial=0)
    cdf = shape.cdf(m, LOW, HIGH, *params)
    assert cdf[[0, -1]] == pytest.approx([0, 1], abs=1e-12)
    np.testing.assert_allclose(cdf, numeric, atol=2e-6)


def test_crystal_ball_agrees_with_scipy():
    m = np.linspace(LOW, HIGH, 101)
    reference = stats.crystalball(1.2, 2.5, loc=3.1, scale=0.04)
    inside = reference.cdf(HIGH) - reference.cdf(LOW)
    np.testing.assert_allclose(CrystalBall().pdf(m, LOW, HIGH, 3.1, 0.04, 1.2, 2.5), reference.pdf(m) / inside)


def test_breit_wigner_is_the_convolution():
    """By a sum over the relativistic Breit-Wigner's values, 20 resolutions to either side and more."""
    m, true = np.linspace(60.0, 120.0, 31), np.linspace(-200, 400, 600_001)
    natural = 1 / ((true**2 - 91.19**2) ** 2 + (91.19 * 2.495) ** 2)
    convolved = np.array([natural @ np.exp(-0.5 * ((value - true) / 1.7) ** 2) for value in m])
    density = BreitWigner().density(m, 91.19, 1.7, 2.495)
    np.testing.assert_allclose(density / density.sum(), convolved / convolved.sum(), rtol=1e-9)


@pytest.mark.parametrize("kind", [Voigt, BreitWigner])
def test_resonances_find_resolution_and_natural_width(kind):
    """Seed 3; a Breit-Wigner of 2.5 with a resolution of 1.5: within 4 standard deviations (6e-5 each)."""
    rng = np.random.default_rng(3)
    peak = 91.2 + 1.25 * rng.standard_cauchy(8000) + rng.normal(0, 1.5, 8000)
    m = np.concatenate([peak, rng.uniform(60, 120, 4000)])
    species = {"signal": kind(mean=91.0), "background": Exponential()}
    fit = SPlot(spectator="m", range=(60, 120), species=species).fit_spectator(m)
    found, error = np.array(fit.values[2:5]), np.array(fit.errors[2:5])
    assert np.all(np.abs(found - [91.2, 1.5, 2.5]) < 4 * error)
    assert np.all(error < [0.1, 0.2, 0.3])


def test_double_sided_crystal_ball_is_symmetric_for_equal_tails():
    shape, params = DoubleSidedCrystalBall(), (3.1, 0.04, 1.2, 2.5, 1.2, 2.5)
    m = np.linspace(LOW, HIGH, 1001)
    np.testing.assert_allclose(shape.pdf(m, LOW, HIGH, *params), shape.pdf(m, LOW, HIGH, *params)[::-1], rtol=1e-9)


def test_guess_finds_the_peak_and_the_slope():
    """Seed 1; a peak of 5000 on 10 000: fails by chance below 1e-4."""
    rng = np.random.default_rng(1)
    m = np.concatenate([rng.normal(3.1, 0.03, 5000), 2.6 + rng.exponential(0.7, 20_000)])
    guess = Guess.from_data(m[(m >= LOW) & (m <= HIGH)], LOW, HIGH)
    assert guess.mean == pytest.approx(3.1, abs=0.015)
    assert guess.width == pytest.approx(0.03, rel=0.4)
    assert guess.slope == pytest.approx(-1 / 0.7, rel=0.2)


def test_second_gaussian_is_the_wider_one():
    widths = {p.name: p for p in DoubleGaussian().parameters(Guess(LOW, HIGH, 3.1, 0.04, -1.0))}
    assert widths["width_ratio"].limits[0] > 1


def test_fixed_and_limits_reach_the_parameters():
    shape = DoubleGaussian(mean=3.097, limits={"mean": (3.0, 3.2)}, fixed=("offset",))
    parameters = {p.name: p for p in shape.parameters(Guess(LOW, HIGH, 2.9, 0.04, -1.0))}
    assert parameters["mean"].start == 3.097
    assert parameters["mean"].limits == (3.0, 3.2)
    assert parameters["offset"].fixed
    assert not parameters["mean"].fixed


def test_unknown_parameter_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no parameter 'widht'.*did you mean 'width'"):
        Gaussian(limits={"widht": (0.0, 1.0)})


def test_reversed_limits_are_refused():
    with pytest.raises(ConfigError, match="expected lowest < highest"):
        Gaussian(limits={"mean": (3.2, 3.0)})


def test_start_outside_its_limits_is_refused():
    with pytest.raises(ConfigError, match="start value mean = 5 is outside its limits"):
        Gaussian(mean=5.0).parameters(Guess(LOW, HIGH, 3.1, 0.03, -1.0))


@pytest.mark.parametrize(("degree", "coefficients"), [(0, None), (2, [0.1])])
def test_chebyshev_checks_its_degree(degree, coefficients):
    with pytest.raises(ConfigError, match="degree"):
        Chebyshev(degree, coefficients)


def test_chebyshev_says_where_it_would_be_negative():
    assert Chebyshev(2).complaint(LOW, HIGH, 0.1, 0.2) == ""
    assert "negative at 3.1" in Chebyshev(2).complaint(LOW, HIGH, 0.0, 1.5)


def test_two_peaks_need_a_mean():
    with pytest.raises(ConfigError, match="both, other are all peaks"):
        Mixture({"both": Gaussian(), "other": CrystalBall()}, LOW, HIGH).parameters(Guess(LOW, HIGH, 3.1, 0.03, -1.0))


def test_mixture_bins_hold_the_yields():
    mixture = Mixture({"signal": Gaussian(), "background": Exponential()}, LOW, HIGH)
    edges, values = np.linspace(LOW, HIGH, 11), (100.0, 200.0, 3.1, 0.03, -1.4)
    assert mixture.scaled_cdf(edges, *values)[-1] == pytest.approx(300)
    np.testing.assert_allclose(mixture.fractions(edges, values).sum(axis=1), 1)
    assert mixture.scaled_log_pdf(edges, *values)[0] == 300


def test_bernstein_terms_make_every_polynomial_of_their_degree():
    """They add up to a constant, and with shares k / degree to a straight line."""
    m = np.linspace(LOW, HIGH, 11)
    densities = np.array([term.pdf(m, LOW, HIGH) for term in Bernstein(3).terms()])
    np.testing.assert_allclose(densities.mean(axis=0), 1 / (HIGH - LOW))
    np.testing.assert_allclose(np.arange(4) @ densities / 12 * (HIGH - LOW), (m - LOW) / (HIGH - LOW), atol=1e-12)


def test_sums_of_shapes_are_checked():
    with pytest.raises(ConfigError, match="degree is 0, expected at least 1"):
        Bernstein(0)
    with pytest.raises(ConfigError, match="1 shapes found, expected at least two"):
        Sum([Gaussian()])
    with pytest.raises(ConfigError, match="k = 4 found, expected 0 to the degree, 3"):
        BernsteinTerm(4, 3)
