r"""Analytic toys whose truth is known in closed form.

`ImpureToy` is a calibration sample in small: a signal with two features, whose means and widths are known functions of
the context, over a background of another shape, and a spectator that separates them statistically.  `CorrelatedToy` is
one in which the spectator may depend on a feature or on the context, by a known amount.  `RatioToy` is a generated
sample and an impure reference whose density ratio is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.linalg import hadamard
from scipy.stats import norm, truncexpon

from calorefine.stats import FloatArray

GAMMA_SHAPE = 4.0
N_FEATURES = 8
LARGEST_TRUE_RATIO = 1.5**3 * 1.4
_Density = Callable[[FloatArray], FloatArray]
_HADAMARD = hadamard(N_FEATURES) / np.sqrt(N_FEATURES)
_DISTANCE = np.abs(np.subtract.outer(np.arange(N_FEATURES), np.arange(N_FEATURES)))
_CORRELATING = np.linalg.cholesky(0.5 * (np.eye(N_FEATURES) + 0.8**_DISTANCE))


@dataclass(frozen=True)
class ImpureToy:
    r"""Signal and background with densities known in closed form.

    The context c lies in [0, 1]; an event is signal with probability :math:`f(c) = \bar f \, (1 + 4c) \ln(5) / 4`,
    which varies fivefold.  The density of c is proportional to 1 / f(c), so that the signal is uniform in c.  The
    spectator m lies in [0, 1]: a Gaussian peak of the signal over a flat background, independent of everything else
    within each species.

    =========  =======================================  ================================
    feature    signal                                   background
    =========  =======================================  ================================
    `x`        normal, mean 1 + c, width 0.5 + 0.3 c    normal, mean c, width 0.6
    `y`        gamma of shape 4, mean 2 - c             gamma of shape 4, mean 2.5 - c
    =========  =======================================  ================================

    Args:
        fraction: mean signal fraction.
        peak: mean of the spectator's peak.
        resolution: its width.
    """

    fraction: float = 0.2
    peak: float = 0.5
    resolution: float = 0.005

    def purity(self, c: FloatArray) -> FloatArray:
        """Probability of signal at context c (n,)."""
        return np.asarray(self.fraction * (1 + 4 * c) * np.log(5) / 4)

    def generate(self, n: int, *, seed: int) -> dict[str, NDArray[Any]]:
        """Draw n events: columns c, m, x, y, `true_signal`, run, event, each (n,)."""
        rng = np.random.default_rng(seed)
        c = (5 ** rng.random(n) - 1) / 4
        signal = rng.random(n) < self.purity(c)
        mean, width = self.signal_moments(c)
        x = np.where(signal, rng.normal(mean[:, 0], width[:, 0]), rng.normal(c, 0.6))
        scales = mean[:, 1] / GAMMA_SHAPE, (2.5 - c) / GAMMA_SHAPE
        y = np.where(signal, *(rng.gamma(GAMMA_SHAPE, scale) for scale in scales))
        m = np.where(signal, rng.normal(self.peak, self.resolution, n), rng.random(n))
        return _numbered({"c": c, "m": m, "x": x, "y": y, "true_signal": signal})

    def signal_moments(self, c: FloatArray) -> tuple[FloatArray, FloatArray]:
        """True means and widths (n, 2) of the signal's x and y at context c (n,)."""
        mean = np.stack([1 + c, 2 - c], axis=1)
        width = np.stack([0.5 + 0.3 * c, (2 - c) / np.sqrt(GAMMA_SHAPE)], axis=1)
        return mean, width

    def sweights(self, m: FloatArray) -> FloatArray:
        """Signal sWeights (n,) for the true densities and fraction (Dembinski et al., arXiv:2112.04574, eq. 8).

        Args:
            m: (n,) spectator.
        """
        return _sweights(m, norm(self.peak, self.resolution).pdf, np.ones_like, self.fraction)


@dataclass(frozen=True)
class CorrelatedToy:
    r"""Signal over background where the spectator may depend on a feature in the background, on context in the signal.

    Context c is uniform in [0, 1] in both species.  The spectator m lies in [0, 1]: a Gaussian peak at
    :math:`\mu + s (c - 1/2)` for the signal, an exponential of slope :math:`-1 + b \tanh(z)` for the background, where
    z is its standardized feature x.  With s = b = 0 all of x, y, c are independent of m within each species.

    =======  ===================================  ================================
    feature  signal                               background
    =======  ===================================  ================================
    `x`      normal, mean 1 + c / 2, width 0.5    normal, mean c / 2, width 0.6
    `y`      gamma of shape 4, mean 1.5           gamma of shape 4, mean 2
    =======  ===================================  ================================

    Args:
        fraction: signal fraction.
        background_dependence: b.
        signal_dependence: s, in units of m.
        peak: :math:`\mu`.
        resolution: width of the peak.
    """

    fraction: float = 0.3
    background_dependence: float = 0.0
    signal_dependence: float = 0.0
    peak: float = 0.25
    resolution: float = 0.05

    def generate(self, n: int, *, seed: int | list[int]) -> dict[str, NDArray[Any]]:
        """Draw a Poisson number of events of mean n: columns c, m, x, y, `true_signal`, run, event."""
        rng = np.random.default_rng(seed)
        n = int(rng.poisson(n))
        signal, c = rng.random(n) < self.fraction, rng.random(n)
        z = rng.normal(size=n)
        x = np.where(signal, 1 + c / 2 + 0.5 * z, c / 2 + 0.6 * z)
        y = rng.gamma(GAMMA_SHAPE, np.where(signal, 1.5, 2.0) / GAMMA_SHAPE)
        slope = -1 + self.background_dependence * np.tanh(z)
        peak = rng.normal(self.peak + self.signal_dependence * (c - 0.5), self.resolution)
        m = np.where(signal, peak, _exponential(rng.random(n), slope))
        return _numbered({"c": c, "m": m, "x": x, "y": y, "true_signal": signal})

    def signal_moments(self) -> dict[str, tuple[float, float]]:
        """True mean and width of the signal's x, y and c."""
        return {"x": (1.25, np.sqrt(0.25 + 1 / 48)), "y": (1.5, 0.75), "c": (0.5, np.sqrt(1 / 12))}


@dataclass(frozen=True)
class RatioToy:
    r"""A generated sample, and a reference mixed with background, whose density ratio is known in closed form.

    Behind the eight features x of an event are eight normal numbers u, which are independent in the generated sample.
    With v = H u, H the Hadamard matrix over :math:`\sqrt 8`, the density of the reference's signal is that of the
    generated sample times

    .. math:: r = (1 + \tfrac12 \tanh \tfrac32 v_1) (1 + \tfrac12 \tanh \tfrac32 v_2)
              (1 + \tfrac12 \tanh v_3 \tanh v_4) (1 + \tfrac25 \sin \tfrac32 v_5) .

    Each factor depends on other components of v and has mean 1, so that r is normalized; it lies between 0.075 and
    4.7.  The features are monotone functions (exponential, hyperbolic sine, cubic, ...) of correlated normal numbers
    z = A u, with :math:`(A A^T)_{ij} = \tfrac12 (\delta_{ij} + 0.8^{|i-j|})`.  The background is normal in u, narrower,
    and displaced.  The spectator m lies in [0, 1]: a Gaussian peak of the signal over an exponential of
    the background, independent of x within each.

    Args:
        fraction: signal fraction of the impure reference.
        peak: mean of the spectator's peak.
        resolution: its width.
    """

    fraction: float = 0.6
    peak: float = 0.5
    resolution: float = 0.06

    def log_ratio(self, u: FloatArray) -> FloatArray:
        """Log r (n,), signal over generated, at u (n, 8)."""
        v = (u @ _HADAMARD).T
        factors = 0.5 * np.tanh(1.5 * v[0]), 0.5 * np.tanh(1.5 * v[1]), 0.5 * np.tanh(v[2]) * np.tanh(v[3])
        return np.asarray(np.log1p([*factors, 0.4 * np.sin(1.5 * v[4])]).sum(axis=0))

    def features(self, u: FloatArray) -> FloatArray:
        """Features (n, 8) at u (n, 8)."""
        z = (u @ _CORRELATING.T).T
        odd = np.sinh(z[2]), z[3] ** 3 + z[3]
        bounded = 1 / (1 + np.exp(-1.5 * z[4])), np.log1p(np.exp(2 * z[5])), np.arctan(z[6])
        return np.stack([np.exp(0.7 * z[0]), z[1], *odd, *bounded, 10 * np.exp(0.5 * z[7])], axis=1)

    def generate(self, n: int, *, seed: int | list[int]) -> dict[str, NDArray[Any]]:
        """Draw n generated events: features x (n, 8), their true `log_ratio`, run, event."""
        return self._table(np.random.default_rng(seed).normal(size=(n, N_FEATURES)))

    def signal(self, n: int, *, seed: int | list[int]) -> dict[str, NDArray[Any]]:
        """Draw n events of the reference without background: columns as those of `generate`."""
        return self._table(self._draw_signal(n, np.random.default_rng(seed)))

    def calibration(self, n: int, *, seed: int | list[int]) -> dict[str, NDArray[Any]]:
        """Draw n events of the impure reference: x (n, 8), m, `true_signal`, run, event; no `log_ratio`."""
        rng = np.random.default_rng(seed)
        signal = rng.random(n) < self.fraction
        u = 0.9 * rng.normal(size=(n, N_FEATURES)) + 0.5 * (_HADAMARD[:, 0] - _HADAMARD[:, 3])
        u[signal] = self._draw_signal(int(signal.sum()), rng)
        m = np.where(signal, rng.normal(self.peak, self.resolution, n), _exponential(rng.random(n), -np.ones(n)))
        table = self._table(u) | {"m": m, "true_signal": signal}
        del table["log_ratio"]
        return table

    def sweights(self, m: FloatArray) -> FloatArray:
        """Signal sWeights (n,) for the true densities and fraction (Dembinski et al., arXiv:2112.04574, eq. 8).

        Args:
            m: (n,) spectator.
        """
        return _sweights(m, norm(self.peak, self.resolution).pdf, truncexpon(1).pdf, self.fraction)

    def _draw_signal(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Draw u (n, 8) by accepting generated events."""
        signal = np.empty((0, N_FEATURES))
        while len(signal) < n:
            u = rng.normal(size=(5 * (n - len(signal)) + 100, N_FEATURES))
            accepted = LARGEST_TRUE_RATIO * rng.random(len(u)) < np.exp(self.log_ratio(u))
            signal = np.concatenate([signal, u[accepted]])
        return signal[:n]

    def _table(self, u: FloatArray) -> dict[str, NDArray[Any]]:
        return _numbered({"x": self.features(u), "log_ratio": self.log_ratio(u)})


def _exponential(u: FloatArray, slope: FloatArray) -> FloatArray:
    """Quantiles u (n,) of exponentials of these slopes on [0, 1]."""
    slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    return np.asarray(np.log1p(u * np.expm1(slope)) / slope)


def _sweights(m: FloatArray, signal: _Density, background: _Density, fraction: float) -> FloatArray:
    """Signal sWeights (n,) at spectator m (n,) in [0, 1], for two densities."""
    grid = np.linspace(0, 1, 20_001)
    densities, on_grid = (np.stack([signal(t), background(t)]) for t in (m, grid))
    total, mixed = (fraction * f[0] + (1 - fraction) * f[1] for f in (densities, on_grid))
    overlap = trapezoid(on_grid[:, None] * on_grid[None] / mixed, grid, axis=-1)
    return np.asarray(np.linalg.inv(overlap)[0] @ densities / total)


def _numbered(table: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Add run and event numbers to a table."""
    n = len(next(iter(table.values())))
    return table | {"run": np.ones(n, np.uint32), "event": np.arange(n, dtype=np.uint64)}
