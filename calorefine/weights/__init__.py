"""Where an event's weight comes from: so far, a fit of a spectator."""

from calorefine.weights.shapes import (
    Chebyshev,
    CrystalBall,
    DoubleGaussian,
    DoubleSidedCrystalBall,
    Exponential,
    Gaussian,
    Shape,
)
from calorefine.weights.splot import SPlot, SPlotFit, WeightSource

__all__ = [
    "Chebyshev",
    "CrystalBall",
    "DoubleGaussian",
    "DoubleSidedCrystalBall",
    "Exponential",
    "Gaussian",
    "SPlot",
    "SPlotFit",
    "Shape",
    "WeightSource",
]
