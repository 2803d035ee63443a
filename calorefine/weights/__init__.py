"""Where an event's weight comes from: a fit of a spectator, or fractions of labelled samples; and its bootstrap."""

from calorefine.weights.bootstrap import Replica, bootstrap_weights, replica_fit
from calorefine.weights.factorization import FactorizationResult, factorization_test, reject_if_dependent
from calorefine.weights.fractions import LabelFractions, LabelProbabilities
from calorefine.weights.peaks import CrystalBall, DoubleGaussian, DoubleSidedCrystalBall, Gaussian
from calorefine.weights.polynomials import Bernstein, Chebyshev
from calorefine.weights.positive import PositiveWeights
from calorefine.weights.positive_result import PositiveResult
from calorefine.weights.resonances import BreitWigner, Voigt
from calorefine.weights.shapes import Exponential, Sum
from calorefine.weights.source import WeightFit, WeightSource
from calorefine.weights.splot import SPlot

__all__ = [
    "Bernstein",
    "BreitWigner",
    "Chebyshev",
    "CrystalBall",
    "DoubleGaussian",
    "DoubleSidedCrystalBall",
    "Exponential",
    "FactorizationResult",
    "Gaussian",
    "LabelFractions",
    "LabelProbabilities",
    "PositiveResult",
    "PositiveWeights",
    "Replica",
    "SPlot",
    "Sum",
    "Voigt",
    "WeightFit",
    "WeightSource",
    "bootstrap_weights",
    "factorization_test",
    "reject_if_dependent",
    "replica_fit",
]
