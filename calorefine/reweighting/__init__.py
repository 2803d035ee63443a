"""Density ratios of weighted samples, and the reweighting of generated events."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_HOMES = {
    "BoostingRatio": "boosting",
    "NetworkRatio": "network",
    "RefinedSimulator": "latent_resampling",
    "Reweighter": "reweighter",
    **dict.fromkeys(["Ratio", "RatioEstimator", "WeightedRows", "fit_ratio"], "ratio"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use: what needs another part of the room doesn't wait for all of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'calorefine.reweighting' has no attribute '{name}'")
    return getattr(import_module(f"calorefine.reweighting.{_HOMES[name]}"), name)
