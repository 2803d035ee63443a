"""Where an event's weight comes from: so far, a fit of a spectator."""

from calorefine.weights.factorization import FactorizationResult, factorization_test, warn_if_dependent
from calorefine.weights.shapes import (
    Chebyshev,
    CrystalBall,
    DoubleGaussian,
    DoubleSidedCrystalBall,
    Exponential,
    Gaussian,
    Shape,
)
from calorefine.weights.splot import SPlot, WeightSource
from calorefine.weights.splot_fit import SPlotFit

__all__ = [
    "Chebyshev",
    "CrystalBall",
    "DoubleGaussian",
    "DoubleSidedCrystalBall",
    "Exponential",
    "FactorizationResult",
    "Gaussian",
    "SPlot",
    "SPlotFit",
    "Shape",
    "WeightSource",
    "factorization_test",
    "warn_if_dependent",
]
