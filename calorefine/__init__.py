"""calorefine: generators trained on weighted calibration data, corrected, and with their own uncertainty."""

from calorefine.data.module import EventDataModule
from calorefine.events import Column, Columns, Events
from calorefine.models import WGAN, CramerGAN, Flow, Library
from calorefine.simulator import Simulator

__all__ = [
    "WGAN",
    "Column",
    "Columns",
    "CramerGAN",
    "EventDataModule",
    "Events",
    "Flow",
    "Library",
    "Simulator",
]
