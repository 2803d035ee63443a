r"""One training by several processes (`trainer.strategy: ddp`): the same result as by one.

Every process, called by its rank as usual, reads all events, fits the same weights and preprocessing, and makes the
same order of events.  Of each batch of B events it works on its own B / n in a row, and with the random numbers that
one process would draw for them.  Weights are divided by the mean weight of the whole training sample, never by a sum of
the part's own, so that a loss that is linear in events is the mean of the parts' losses, and its gradient

.. math:: \nabla L = \frac{1}{n} \sum_{r=1}^n \nabla L_r

the mean of theirs: one all-reduce after each backward pass.  A loss of pairs of events gathers the parts first.  No sum
of weights is a sum over one process's events alone, so that none has to be added up over processes; that all have the
same events and weights is checked at the start.

What differs from one process is the order in which numbers are added: rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed, nn

from calorefine.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """One of the processes that share each batch.

    Args:
        rank: which one, from 0.
        n: how many there are.
    """

    rank: int = 0
    n: int = 1

    @classmethod
    def of(cls, trainer: Trainer) -> Ranks:
        """Return the trainer's.

        Raises:
            ConfigError: several processes that share a batch in another way.
        """
        if trainer.world_size == 1:
            return cls()
        if type(trainer.strategy) is not DDPStrategy:  # a subclass may split parameters, too
            msg = f"trainer.strategy: {type(trainer.strategy).__name__} with {trainer.world_size} processes found"
            raise ConfigError(f"{msg}, expected ddp, or one device")
        return cls(trainer.global_rank, trainer.world_size)

    def whole(self, shape: Iterable[int]) -> tuple[int, ...]:
        """Shape (B, ...) of what belongs to a whole batch, from that (B / n, ...) of the own part."""
        first, *others = shape
        return (self.n * first, *others)

    def own(self, batch: torch.Tensor) -> torch.Tensor:
        """Own part (B / n, ...) of what belongs to a whole batch (B, ...).

        Raises:
            ConfigError: B is no multiple of n.
        """
        if len(batch) % self.n:
            msg = (
                f"data.batch_size: batches of {len(batch)} events found, expected a multiple of the {self.n} processes"
            )
            raise ConfigError(f"{msg}, which share each batch")
        return batch if self.n == 1 else batch.chunk(self.n)[self.rank]

    def gathered(self, part: torch.Tensor) -> torch.Tensor:
        """Whole batch (B, ...) from each process's part (B / n, ...), for a loss that all compute alike."""
        gathered: torch.Tensor = part if self.n == 1 else _Gathered.apply(part, self)  # type: ignore[no-untyped-call]
        return gathered

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean over the processes, without gradient; the same bits in each."""
        if self.n == 1:
            return value.detach()
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.n

    def average_gradients(self, module: nn.Module) -> None:
        """Replace the gradients of a module by their mean over the processes."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if self.n == 1 or not gradients:
            return
        mean = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(mean, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def require_same(self, values: Mapping[str, Any]) -> None:
        """Check that all processes have the same values of what these names stand for.

        Raises:
            ConfigError: one has another than the first; in all of them.
        """
        if self.n == 1:
            return
        found: list[Any] = [None] * self.n
        distributed.all_gather_object(found, dict(values))
        for rank, others in enumerate(found):
            for name, value in others.items():
                if value != found[0][name]:
                    msg = f"trainer.strategy ddp: process {rank} has {name} {value}, process 0 has {found[0][name]}"
                    raise ConfigError(f"{msg}; expected the same files, options and seed in each: all read all events")


class _Gathered(torch.autograd.Function):
    """Parts of all processes in the order of their ranks.

    If all compute the same loss of the whole, each knows its gradient with respect to the own part.  The sum of the
    processes' gradients of the parameters is that of the loss, so that their mean is when each is n times as large.
    """

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(part) for _ in range(ranks.n)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.ranks.n * ctx.ranks.own(gradient), None
