"""Batches of events as tensors: whole ones, shuffled by seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler

from calorefine import keys
from calorefine.ddp import Ranks
from calorefine.events import Events

COUNTED = 1 - math.exp(-1)
"""Expected fraction of the events that a bootstrap replica counts at least once."""


class Batch(NamedTuple):
    """Events as tensors: in network units for training, in physical units for validation.

    Args:
        x: (B, d) float32.
        context: (B, c) float32.
        weight: (B,) float32, any sign.
    """

    x: torch.Tensor
    context: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Epoch:
    """How a pass over the training events is divided.

    Args:
        size: events in a batch.
        n_batches: number of batches, hence of updates.
    """

    size: int
    n_batches: int

    @property
    def n_events(self) -> int:
        """Events that it takes."""
        return self.size * self.n_batches

    def of_replica(self) -> Epoch:
        """Return as many batches of the events that a bootstrap replica counts, `COUNTED` of the size.

        Events that count 0 times don't contribute to a weighted sum, so that an update sees what it would see of a
        batch with them, in less time.  Within 2.5 %, the size is one that as many numbers of processes divide.
        """
        wanted = COUNTED * self.size
        near = range(math.ceil(0.975 * wanted), math.floor(1.025 * wanted) + 1)
        shared = [n for n in range(1, 17) if self.size % n == 0]
        rank = {size: (sum(size % n == 0 for n in shared), -abs(size - wanted)) for size in near}
        size = max(rank, key=rank.__getitem__, default=round(wanted))
        return Epoch(max(size, min(2, self.size)), self.n_batches)


class BatchDataset(Dataset[Batch]):
    """Events addressed by whole batches of indices."""

    def __init__(self, events: Batch) -> None:
        """Hold all events."""
        self.events = events

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.events.weight)

    def __getitem__(self, index: torch.Tensor) -> Batch:
        """Events at these indices (B,)."""
        return Batch(*(array[index] for array in self.events))


class ShuffledBatches(DistributedSampler[torch.Tensor]):
    """Batches of indices in an order that depends on seed and epoch alone, so that a resumed run sees the same ones.

    It gives one of several processes its part of each batch.  Lightning, which would deal out whole batches, leaves a
    `DistributedSampler` alone.
    """

    def __init__(self, n: int, plan: Epoch, *, seed: int, ranks: Ranks = Ranks()) -> None:  # noqa: B008 (immutable)
        """Prepare for `n` events, of which each epoch takes as many as planned."""
        super().__init__(range(n), num_replicas=ranks.n, rank=ranks.rank, seed=seed)  # type: ignore[arg-type]
        self.n, self.plan, self.ranks = n, plan, ranks

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.plan.n_batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the indices (B / n,) of each batch's own part."""
        noise = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(self.n, generator=noise)
        for batch in torch.split(order[: self.plan.n_events], self.plan.size):
            yield self.ranks.own(batch)


def counted(events: Events, among: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    """Events (n,) of these whose weight is not 0, and others, by hash of their keys, if they are fewer than `least`."""
    chosen: NDArray[np.bool_] = among & (events.weight != 0)
    others = np.flatnonzero(among & ~chosen)
    order = np.argsort(keys.stream(events.key[others], "uncounted"), kind="stable")
    chosen[others[order[: max(0, least - int(chosen.sum()))]]] = True
    return chosen
