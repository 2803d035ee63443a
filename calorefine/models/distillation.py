r"""Students: generators of one pass that learn from a trained one, the teacher, what it makes of noise.

A teacher with as many latent numbers as features maps noise z at context c to an event :math:`T(z; c)`: a flow, one
pass for each feature if it is autoregressive, or flow matching, a few passes.  A student is trained to give the same
event for the same noise, at the contexts of the training sample and with their weights,

.. math:: \sum_i w_i \, |S(z_i; c_i) - T(z_i; c_i)|^2 \, / \, (B \bar w d) ,

so that noise is new in every step, and there are as many examples as steps.  `Student` is any network.  `FlowStudent`
is a flow of couplings, which keeps a likelihood: it also learns to find the noise of the teacher's event (the two
losses of CaloFlow II, Krause and Shih, arXiv:2110.11377, section III).

The teacher has been trained on the same sample: its preprocessing is the student's.  Each replica of an ensemble needs
a teacher of its own, that of the same replica, or their spread would lack the teacher's.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calorefine.data.batches import Batch
from calorefine.data.module import EventDataModule
from calorefine.errors import CheckpointError, ConfigError
from calorefine.io.provenance import digest
from calorefine.models.averaged import AveragedModel
from calorefine.models.base import CHECKPOINT_KEY, GenerativeModel
from calorefine.models.checkpoint import load_model
from calorefine.models.flow import Flow
from calorefine.models.updates import averaged, check_decay
from calorefine.nets import Activation, Noise, ResidualMLP
from calorefine.stats import batch_mean

MEMBER = "{member}"
TEACHER = "teacher"


class Taught(AveragedModel, recipe=False):
    """A generator that is trained to make of noise what a teacher makes; needs positive weights."""

    signed_weights = False
    validated_by = "squared difference from the teacher"
    terms_order = 1
    teacher: str
    _teacher: tuple[GenerativeModel, ...] = ()  # a module in a tuple is no part of this one

    def set_up(self, data: EventDataModule) -> None:
        """Build the networks, and load the teacher.

        Raises:
            ConfigError: it can't teach this, or has another preprocessing.
        """
        super().set_up(data)
        index = data.replica.index
        path = Path(self.teacher.replace(MEMBER, f"replica_{index:03d}" if index else "nominal"))
        teacher = load_model(path)
        self._check(teacher, path, index)
        self.learn_from(teacher, {"checkpoint": path.name, "checkpoint_sha256": digest(path)})

    def learn_from(self, teacher: GenerativeModel, identity: dict[str, str]) -> None:
        """Take a teacher with the same preprocessing, and what tells which it is, for the checkpoint."""
        self._teacher = (teacher.eval().requires_grad_(requires_grad=False),)
        if self.spec is not None:
            self.spec[TEACHER] = identity

    def _check(self, teacher: GenerativeModel, path: Path, index: int) -> None:
        """Raise `ConfigError` for a teacher that can't teach this generator."""
        if teacher.latent_size != self.features.n_columns:
            msg = (
                f"teacher: {path} is a {type(teacher).__name__}, which makes an event of {teacher.latent_size} numbers"
            )
            raise ConfigError(f"{msg}, expected as many as it has features, {self.features.n_columns}, as a flow does")
        pairs = ((teacher.features, self.features), (teacher.context, self.context))
        if not all(_same(theirs.state_dict(), ours.state_dict()) for theirs, ours in pairs):
            msg = f"teacher: {path} was trained on other data, weights or split than these, expected the same"
            hint = f"; a replica has a teacher of its own: write {MEMBER} for the name of its folder" if index else ""
            raise ConfigError(f"{msg}, so that its noise and events are the student's{hint}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume with another teacher, too."""
        if self.spec is not None and self.trainer.training and TEACHER in self.spec:
            then, now = (one[TEACHER]["checkpoint_sha256"] for one in (checkpoint[CHECKPOINT_KEY], self.spec))
            if then != now:
                raise CheckpointError(f"the checkpoint had a teacher with SHA-256 {then[:12]}, this has {now[:12]}")
        super().on_load_checkpoint(checkpoint)

    @torch.no_grad()
    def taught(self, context: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise (B, d) and the teacher's events (B, d) for it, in network units, at contexts (B, c)."""
        (teacher,) = self._teacher
        z = noise.normal(len(context), self.latent_size).to(context.dtype)
        return z, teacher.to(context.device).generate(z, context)

    def differences(self, batch: Batch, noise: Noise, *, trained: bool) -> torch.Tensor:
        """Squared differences (B,) of the student's events from the teacher's, averaged over the features."""
        z, x = self.taught(batch.context, noise)
        return _squared(self.made(z, batch.context, trained=trained), x)

    @abstractmethod
    def made(self, latent: torch.Tensor, context: torch.Tensor, *, trained: bool) -> torch.Tensor:
        """Events (n, d) of the student, as trained or of its moving average."""

    def generate(self, latent: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map noise to events with the averaged student."""
        return self.made(latent, context, trained=False)

    def estimate(self, batch: Batch, noise: Noise, mean_weight: float | torch.Tensor) -> torch.Tensor:
        """Weighted squared difference from the teacher at a minibatch's contexts."""
        return batch_mean(self.differences(batch, noise, trained=True), batch.weight, mean_weight)

    def validation_terms(self, batch: Batch) -> torch.Tensor:
        """Weighted squared differences (n,) at held-out contexts over the mean weight, for the noise of every call."""
        held_out = batch._replace(context=self.context(batch.context))
        noise = Noise(0, device=held_out.context.device)
        return batch.weight / batch.weight.mean() * self.differences(held_out, noise, trained=False)


class Student(Taught):
    """A residual network that makes of noise what its teacher makes; needs positive weights.

    Args:
        teacher: its checkpoint; `{member}` in it stands for the name of an ensemble's member, as `nominal` or
            `replica_001`.
        width: of the layers.
        n_blocks: residual blocks, of two layers each.
        act: activation of the layers.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        clip_norm: gradients are scaled down to this norm.
        average_decay: decay of the moving average.
    """

    def __init__(
        self,
        *,
        teacher: str,
        width: int = 128,
        n_blocks: int = 3,
        act: Activation = "silu",
        learning_rate: float = 2e-3,
        clip_norm: float = 5.0,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        super().__init__(latent_size=0)
        check_decay(average_decay)
        self.teacher, self.width, self.n_blocks, self.act = teacher, width, n_blocks, act
        self.learning_rate, self.clip_norm, self.average_decay = learning_rate, clip_norm, average_decay

    def build(self, n_features: int, n_context: int) -> None:
        """Create the network, which is the identity on its noise at first, and its moving average."""
        self.latent_size = n_features
        size = {"width": self.width, "n_blocks": self.n_blocks}
        self.student = ResidualMLP(n_features, n_context, n_features, act=self.act, **size)
        self.average = averaged(self.student)

    @property
    def trained(self) -> nn.Module:
        """The student."""
        return self.student

    def made(self, latent: torch.Tensor, context: torch.Tensor, *, trained: bool) -> torch.Tensor:
        """Events of the student: the noise, and what the network adds."""
        network = self.student if trained else self.average
        added: torch.Tensor = network(latent, context)
        return latent + added


class FlowStudent(Taught, Flow):
    """A flow of couplings that makes of noise what its teacher makes, and knows its density; needs positive weights.

    Args:
        teacher: its checkpoint; `{member}` in it stands for the name of an ensemble's member, as `nominal` or
            `replica_001`.
        n_layers: number of couplings; if left out, as many as let each feature depend on each other.
        hidden: widths of the hidden layers of a coupling's network.
        n_bins: bins of a spline.
        learning_rate: initial rate of Adam, which falls to 1 % over the run like a cosine.
        average_decay: decay of the moving average.
    """

    def __init__(
        self,
        *,
        teacher: str,
        n_layers: int | None = None,
        hidden: list[int] = [64, 64],  # noqa: B006 (never changed; shown by --print_config)
        n_bins: int = 8,
        learning_rate: float = 2e-3,
        average_decay: float = 0.998,
    ) -> None:
        """Check the options; networks are built when the data are known."""
        options: dict[str, Any] = {"n_layers": n_layers, "hidden": hidden, "n_bins": n_bins}
        super().__init__(**options, learning_rate=learning_rate, average_decay=average_decay)
        self.teacher = teacher

    @property
    def leading_axis(self) -> bool:
        """No: each replica has a teacher of its own."""
        return False

    def made(self, latent: torch.Tensor, context: torch.Tensor, *, trained: bool) -> torch.Tensor:
        """Events that the couplings make of noise."""
        flow: Any = self.flow if trained else self.average  # nflows has no types
        events: torch.Tensor = flow.inverse(latent, context)[0]
        return events

    def differences(self, batch: Batch, noise: Noise, *, trained: bool) -> torch.Tensor:
        """Squared differences (B,) of events and of noise from the teacher's, averaged over the features."""
        z, x = self.taught(batch.context, noise)
        flow: Any = self.flow if trained else self.average
        of_noise = _squared(flow(x, batch.context)[0], z)
        return of_noise + _squared(self.made(z, batch.context, trained=trained), x)


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared differences (n,) of rows (n, d), averaged over the columns."""
    return (a - b).square().mean(-1)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two preprocessings hold the same numbers."""
    return a.keys() == b.keys() and all(
        a[name].shape == b[name].shape and bool((a[name] == b[name]).all()) for name in a
    )
