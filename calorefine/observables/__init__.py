"""Observables: expressions and binnings, measured in files of events for many weights at once."""

from calorefine.observables.histogram import Histogram
from calorefine.observables.measure import Measured, measure
from calorefine.observables.observable import Observable, Regular
from calorefine.observables.quantiles import Quantile, Width
from calorefine.observables.ratios import Efficiency, Mean
from calorefine.observables.reading import Weights
from calorefine.observables.sums import Beyond, Entries

__all__ = [
    "Beyond",
    "Efficiency",
    "Entries",
    "Histogram",
    "Mean",
    "Measured",
    "Observable",
    "Quantile",
    "Regular",
    "Weights",
    "Width",
    "measure",
]
