"""Train several replicas of a recipe side by side, in one process, on a leading axis of their tensors.

Small networks spend as much time between matrix products as in them; several of them share what is between.  Each
replica has its own events' weights, preprocessing, starting point, order of events and noise, and becomes what it would
become alone, up to the rounding of its matrix products.  A recipe declares by `leading_axis` whether it can be trained
so; others train one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from calorefine.data.batches import Batch, ShuffledBatches
from calorefine.data.module import EventDataModule
from calorefine.data.occupancy import Parts
from calorefine.errors import CheckpointError, ConfigError
from calorefine.models.base import EPOCHS_KEY, GenerativeModel
from calorefine.models.updates import step_seed
from calorefine.nets import Noise, side_by_side
from calorefine.simulator import Simulator

LOWEST = "calorefine_lowest_validations"
HISTORY = "calorefine_validations"
DIGESTS = "calorefine_digests"


def can_train_together(model: GenerativeModel) -> bool:
    """Whether replicas of a prepared recipe can share a leading axis; it declares that itself."""
    return model.leading_axis


class Together(GenerativeModel, recipe=False):
    """What a recipe whose networks are stacked does in another way than one that trains alone; see `together`."""

    replicas: list[GenerativeModel]
    checkpoints: list[Path]
    lowest_of: list[torch.Tensor | None]
    history: list[list[float]]

    def setup(self, stage: str) -> None:
        """Nothing: the replicas are prepared."""

    def on_fit_start(self) -> None:
        """Take the replicas to the device."""
        for replica in self.replicas:
            replica.to(self.device)

    def step_noise(self, *position: int) -> Noise:
        """Each replica's own."""
        return Noise(*(step_seed(int(replica.noise_seed), position) for replica in self.replicas), device=self.device)

    def physical(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Each replica's events, by its own preprocessing."""
        parts = zip(self.replicas, x, context, strict=True)
        return torch.stack([replica.physical(events, own) for replica, events, own in parts])

    def physical_context(self, context: torch.Tensor) -> torch.Tensor:
        """Each replica's context, by its own map."""
        pairs = zip(self.replicas, context, strict=True)
        return torch.stack([replica.physical_context(own) for replica, own in pairs])

    def parts(self, x: torch.Tensor) -> Parts:
        """Each replica's events, with atoms set apart by its own preprocessing."""
        replicas = [replica.parts(events) for replica, events in zip(self.replicas, x, strict=True)]
        return Parts(*map(torch.stack, zip(*replicas, strict=True)))

    def dequantized(self, batch: Batch, noise: Noise) -> Batch:
        """Each replica's batch, spread by its own preprocessing."""
        if not any(replica.features.is_discrete for replica in self.replicas):
            return batch
        parts = zip(self.replicas, batch.x, noise.generators, self.physical_context(batch.context), strict=True)
        spread = [replica.features.dequantize(x, generator, context) for replica, x, generator, context in parts]
        return batch._replace(x=torch.stack(spread))

    def clip_gradients(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the norm of each replica's gradient on its own."""
        del gradient_clip_algorithm
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
        factor = (gradient_clip_val / (norm + 1e-6)).clamp_max(1.0)
        for g in gradients:
            g.mul_(factor.reshape(-1, *[1] * (g.dim() - 1)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 (signature fixed by Lightning)
        """Validate each replica on its own held-out events; keep its checkpoint as it would alone."""
        if self.trainer.sanity_checking:
            return
        self.history.append([])
        for index, (replica, held_out) in enumerate(zip(self.replicas, batch, strict=True)):
            self.split_off(index)
            replica.lowest = self.lowest_of[index]
            terms = replica.validation_terms(held_out)
            self.check_finite(terms.mean(), f"replica {index}: the {self.validated_by} of held-out events")
            self.history[-1].append(float(terms.mean()))
            if replica.lowest is None or terms.mean() < replica.lowest.mean():
                self.lowest_of[index] = terms
            if replica.excess(terms) <= 0 or replica.lowest is None:
                Simulator(replica, replica.spec or {}).save(self.checkpoints[index])

    def split_off(self, index: int) -> GenerativeModel:
        """Return replica `index` with its present parameters."""
        replica, state = self.replicas[index], self.state_dict()
        parameters = dict(replica.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name][index])
        return replica

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what an exact resumption needs."""
        checkpoint[LOWEST], checkpoint[HISTORY] = self.lowest_of, self.history
        checkpoint[DIGESTS] = self._digests()
        checkpoint[EPOCHS_KEY] = self.trainer.max_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the validations so far.

        Raises:
            CheckpointError: the replicas' data or the length of the training are not those of the checkpoint.
        """
        if checkpoint[DIGESTS] != self._digests() or checkpoint[EPOCHS_KEY] != self.trainer.max_epochs:
            msg = "an unfinished training has other data or another max_epochs than this one"
            raise CheckpointError(f"{msg}; remove it to start anew")
        self.lowest_of, self.history = checkpoint[LOWEST], checkpoint[HISTORY]

    def _digests(self) -> list[str]:
        return [(replica.spec or {})["provenance"]["digest"] for replica in self.replicas]


def together(replicas: Sequence[GenerativeModel], checkpoints: Sequence[Path]) -> Together:
    """Return one model that trains these.

    Args:
        replicas: prepared, of the same recipe and options.
        checkpoints: the best checkpoint of each is written there.

    Raises:
        ConfigError: the recipe can't be trained so.
    """
    first = replicas[0]
    if not can_train_together(first):
        raise ConfigError(f"a {type(first).__name__} can't be trained side by side with others; expected together: 1")
    joined: Any = side_by_side(replicas)
    joined.__class__ = type(f"{type(first).__name__}Together", (Together, type(first)), {}, recipe=False)
    joined.__dict__["replicas"] = list(replicas)  # not as submodules: their parameters are not trained
    joined.checkpoints, joined.lowest_of, joined.history = list(checkpoints), [None] * len(replicas), []
    for name, _ in first.named_buffers(recurse=False):
        joined.register_buffer(name, torch.stack([replica.get_buffer(name) for replica in replicas]))
    del joined.mean_weight
    mean_weight = torch.tensor([replica.mean_weight for replica in replicas])
    joined.register_buffer("mean_weight", mean_weight, persistent=False)
    return joined  # type: ignore[no-any-return]


class _Stacked(Dataset[Batch]):
    """Events of several replicas, addressed by whole batches of indices (k, B)."""

    def __init__(self, events: Sequence[Batch]) -> None:
        self.events = events

    def __len__(self) -> int:
        return len(self.events[0].weight)

    def __getitem__(self, index: torch.Tensor) -> Batch:
        parts = [Batch(*(a[rows] for a in events)) for events, rows in zip(self.events, index, strict=True)]
        return Batch(*(torch.stack(arrays) for arrays in zip(*parts, strict=True)))


class _Orders(Sampler[torch.Tensor]):
    """The replicas' batches of indices, stacked (k, B)."""

    def __init__(self, orders: Sequence[ShuffledBatches]) -> None:
        self.orders = orders

    def set_epoch(self, epoch: int) -> None:
        for order in self.orders:
            order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.orders[0])

    def __iter__(self) -> Iterator[torch.Tensor]:
        for rows in zip(*self.orders, strict=True):
            yield torch.stack(rows)


def training_batches(data: Sequence[EventDataModule], seeds: Sequence[int]) -> DataLoader[Batch]:
    """Batches (k, B, ...) of the replicas, each in the order that its seed gives it."""
    orders = [ShuffledBatches(len(each.train), each.epoch, seed=seed) for each, seed in zip(data, seeds, strict=True)]
    return DataLoader(_Stacked([each.network_events for each in data]), sampler=_Orders(orders), batch_size=None)


def validation_batches(data: Sequence[EventDataModule]) -> DataLoader[Any]:
    """One list of the replicas' held-out events, in physical units."""
    return DataLoader([[next(iter(each.val_dataloader())) for each in data]], batch_size=None)  # type: ignore[arg-type]
