"""From the values of all bins under variations to a covariance by source, and to files for statistics tools."""

from calorefine.systematics.assemble import assemble
from calorefine.systematics.bias import Bias, closure_bias, ensemble_bias, inflate, with_bias
from calorefine.systematics.histfactory import Fit
from calorefine.systematics.hotelling import Chi2
from calorefine.systematics.output import Saved, load, save
from calorefine.systematics.principal_components import Component, Decomposition
from calorefine.systematics.sources import ErrorSource
from calorefine.systematics.systematics import ObservableBins, Systematics

__all__ = [
    "Bias",
    "Chi2",
    "Component",
    "Decomposition",
    "ErrorSource",
    "Fit",
    "ObservableBins",
    "Saved",
    "Systematics",
    "assemble",
    "closure_bias",
    "ensemble_bias",
    "inflate",
    "load",
    "save",
    "with_bias",
]
