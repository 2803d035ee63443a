r"""Analytic toys whose truth is known in closed form.

`ImpureToy` is a calibration sample in small: a signal with two features, whose means and widths are known functions of
the context, over a background of another shape, and a spectator that separates them statistically.  `CorrelatedToy` is
one in which the spectator may depend on a feature or on the context, by a known amount.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.stats import FloatArray

GAMMA_SHAPE = 4.0


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
        purity: FloatArray = self.fraction * (1 + 4 * c) * np.log(5) / 4
        return purity

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
        run, event = np.ones(n, np.uint32), np.arange(n, dtype=np.uint64)
        return {"c": c, "m": m, "x": x, "y": y, "true_signal": signal, "run": run, "event": event}

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
        densities = np.stack([self._peak_density(m), np.ones_like(m)])
        grid = np.linspace(0, 1, 20_001)
        on_grid = np.stack([self._peak_density(grid), np.ones_like(grid)])
        mixed = self.fraction * on_grid[0] + (1 - self.fraction) * on_grid[1]
        overlap = np.trapezoid(on_grid[:, None] * on_grid[None] / mixed, grid, axis=-1)
        total = self.fraction * densities[0] + (1 - self.fraction) * densities[1]
        weight: FloatArray = np.linalg.inv(overlap)[0] @ densities / total
        return weight

    def _peak_density(self, m: FloatArray) -> FloatArray:
        z = (m - self.peak) / self.resolution
        density: FloatArray = np.exp(-0.5 * z**2) / (self.resolution * np.sqrt(2 * np.pi))
        return density


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
        run, event = np.ones(n, np.uint32), np.arange(n, dtype=np.uint64)
        return {"c": c, "m": m, "x": x, "y": y, "true_signal": signal, "run": run, "event": event}

    def signal_moments(self) -> dict[str, tuple[float, float]]:
        """True mean and width of the signal's x, y and c."""
        return {"x": (1.25, np.sqrt(0.25 + 1 / 48)), "y": (1.5, 0.75), "c": (0.5, np.sqrt(1 / 12))}


def _exponential(u: FloatArray, slope: FloatArray) -> FloatArray:
    """Quantiles u (n,) of exponentials of these slopes on [0, 1]."""
    slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    quantile: FloatArray = np.log1p(u * np.expm1(slope)) / slope
    return quantile
