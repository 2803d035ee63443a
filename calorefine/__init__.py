"""calorefine: generators trained on weighted calibration data, corrected, and with their own uncertainty.

The names below are imported when they are first used, so that a command that needs none of them starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calorefine.data.module import EventDataModule
    from calorefine.events import Column, Columns, Events
    from calorefine.models import VAE, WGAN, CramerGAN, Flow, FlowMatching, FlowStudent, Library, Student
    from calorefine.simulator import Simulator
    from calorefine.simulator_map import SimulatorMap, load_simulator

__all__ = [
    "VAE",
    "WGAN",
    "Column",
    "Columns",
    "CramerGAN",
    "EventDataModule",
    "Events",
    "Flow",
    "FlowMatching",
    "FlowStudent",
    "Library",
    "Simulator",
    "SimulatorMap",
    "Student",
    "load_simulator",
]
_HOMES = {
    "EventDataModule": "data.module",
    **dict.fromkeys(["Column", "Columns", "Events"], "events"),
    **dict.fromkeys(
        ["VAE", "WGAN", "CramerGAN", "Flow", "FlowMatching", "FlowStudent", "Library", "Student"], "models"
    ),
    "Simulator": "simulator",
    **dict.fromkeys(["SimulatorMap", "load_simulator"], "simulator_map"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'calorefine' has no attribute '{name}'")
    return getattr(import_module(f"calorefine.{_HOMES[name]}"), name)
