"""Generators of one network, whose moving average over the training steps is validated, saved and sampled from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from functools import partial

from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from calorefine.models.base import TrainedModel
from calorefine.models.updates import Average, Update
from calorefine.nets import cosine


class AveragedModel(TrainedModel, recipe=False):
    """A recipe whose `build` makes one network to train, and `average`, its copy by `averaged`."""

    average: nn.Module
    learning_rate: float
    clip_norm: float
    average_decay: float
    weight_decay: float | None = None
    """Of AdamW (Loshchilov and Hutter, arXiv:1711.05101); Adam without."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The network that is trained."""

    @property
    def network(self) -> nn.Module:
        """Its moving average."""
        return self.average

    @property
    def adam(self) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
        """Makes the optimizer."""
        if self.weight_decay is None:
            return partial(Adam, lr=self.learning_rate)
        return partial(AdamW, lr=self.learning_rate, weight_decay=self.weight_decay)

    def updates(self) -> list[Update]:
        """Adam, with a rate that falls like a cosine."""
        average = Average(self.trained, self.average, self.average_decay)
        parameters = list(self.trained.parameters())
        return [Update("loss", parameters, self.loss, self.adam, cosine, clip_norm=self.clip_norm, average=average)]
