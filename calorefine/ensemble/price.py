"""What an ensemble takes: hours, disk, and how well its error is known, from a few steps of its training."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from calorefine.ensemble.members import CHECKPOINT, Member
from calorefine.ensemble.side_by_side import can_train_together, together, training_batches, validation_batches
from calorefine.ensemble.train import Recipe, untrained
from calorefine.simulator import Simulator
from calorefine.stats import error_of_error

STEPS, FIRST = 30, 10  # measured, and those of them that count for warming up


class Clock(pl.Callback):
    """Seconds of a training step, without the first ones, and of a validation."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.ends: list[float] = []
        self.start = self.validation = 0.0

    @property
    def step(self) -> float:
        """Mean seconds of a step."""
        first = min(FIRST, len(self.ends) - 2)
        return (self.ends[-1] - self.ends[first]) / (len(self.ends) - 1 - first) if first >= 0 else 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def on_validation_start(self, *_: Any) -> None:
        """Note the time."""
        self.start = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        """Note how long it took."""
        self.validation = time.perf_counter() - self.start


@dataclass(frozen=True)
class Price:
    """What the members that are not trained yet take.

    Attributes:
        groups: seconds and bytes of each group, in the order in which processes take them up.
        n_members: number of members in them.
        processes: that train at the same time.
        replicas: in the whole ensemble.
    """

    groups: list[tuple[float, int]]
    n_members: int
    processes: int
    replicas: int

    @property
    def seconds(self) -> float:
        """Wall time, if the processes don't slow each other down."""
        busy = [0.0] * self.processes
        for seconds, _ in self.groups:
            heapq.heapreplace(busy, busy[0] + seconds)
        return max(busy)

    @property
    def disk(self) -> int:
        """Bytes of checkpoints."""
        return sum(size for _, size in self.groups)

    def __str__(self) -> str:
        """Report for the terminal."""
        lines = [f"dry run: nothing is trained or written; {self.n_members} members are left to train"]
        lines.append(f"about {self.seconds / 3600:.2f} hours in {self.processes} processes on as many free cores")
        lines.append(f"about {self.disk / 1e6:.0f} MB of checkpoints")
        if self.replicas > 1:
            known = f"an error from {self.replicas} replicas is known to {error_of_error(self.replicas - 1):.1%}"
            lines.append(f"{known}; from 50 to {error_of_error(49):.1%}, from 100 to {error_of_error(99):.1%}")
        return "\n".join(lines)


def price(recipe: Recipe, groups: Sequence[Sequence[Member]], *, processes: int, replicas: int) -> Price:
    """Measure a few steps and a validation of each kind and size of group.

    Args:
        recipe: how members are trained.
        groups: of members that train in one process.
        processes: that train at the same time.
        replicas: in the whole ensemble.
    """
    measured: dict[tuple[str, int], tuple[float, int]] = {}
    kinds = [("replica" if group[0].kind == "replica" else "nominal", len(group)) for group in groups]
    for kind, size in dict.fromkeys(kinds):
        measured[kind, size] = _measured(
            recipe, Member("replica", 1) if kind == "replica" else Member("nominal", 0), size
        )
    return Price([measured[kind] for kind in kinds], sum(map(len, groups)), processes, replicas)


def _measured(recipe: Recipe, member: Member, size: int) -> tuple[float, int]:
    """Seconds and bytes of a group of so many members; one stands for all of them."""
    full = recipe.make().trainer
    few = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.num_sanity_val_steps", "0"]
    short = replace(recipe, options=(*recipe.options, *few, "--trainer.limit_train_batches", str(STEPS)))
    command = short.make()
    start = time.perf_counter()
    data = command.datamodule.for_replica(member.replica(command.datamodule.replica))
    data.setup()
    set_up, clock = time.perf_counter() - start, Clock()
    seeds = range(1, size + 1)
    models = [untrained(command.model, data, seed) for seed in seeds]
    joint = size > 1 and can_train_together(models[0])
    command.trainer.callbacks += [clock]
    with tempfile.TemporaryDirectory() as folder:
        if joint:
            names = [Path(folder) / f"{seed}.ckpt" for seed in seeds]
            batches = training_batches([data] * size, list(seeds)), validation_batches([data] * size)
            command.trainer.fit(together(models, names), *batches)
        else:
            command.trainer.fit(models[0], data.train_dataloader(), data.val_dataloader())
        command.trainer.save_checkpoint(Path(folder) / "last.ckpt")
        Simulator(models[0], models[0].spec or {}).save(Path(folder) / CHECKPOINT)
        whole, slim = ((Path(folder) / name).stat().st_size for name in ("last.ckpt", CHECKPOINT))
    epochs = full.max_epochs or 0
    seconds = epochs * data.epoch.n_batches * clock.step + epochs // full.check_val_every_n_epoch * clock.validation
    alone = 1 if joint else size
    return size * set_up + alone * seconds, size * slim + (whole if joint else 2 * size * whole)
