"""Density ratios of weighted samples, and the reweighting of generated events."""

from calorefine.reweighting.boosting import BoostingRatio
from calorefine.reweighting.latent_resampling import RefinedSimulator
from calorefine.reweighting.network import NetworkRatio
from calorefine.reweighting.ratio import Ratio, RatioEstimator, WeightedRows, fit_ratio
from calorefine.reweighting.reweighter import Reweighter

__all__ = [
    "BoostingRatio",
    "NetworkRatio",
    "Ratio",
    "RatioEstimator",
    "RefinedSimulator",
    "Reweighter",
    "WeightedRows",
    "fit_ratio",
]
