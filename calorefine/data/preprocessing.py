"""Preprocessing: the invertible map of features between physical units and network units, an interface.

The data module fits it to the training events, the models work in its network units, and a checkpoint holds it: the
name of its class, the arguments of its constructor and its buffers.  `ColumnTransforms` is the default; a class of
one's own implements `fit`, `forward`, `inverse` and `n_columns`, and what else its recipes ask for.  A map may depend
on the event's context, which each method is given: encoded, in physical units.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from calorefine.data.occupancy import Parts
from calorefine.data.piecewise import NormalWithin, UniformWithin
from calorefine.ddp import Ranks
from calorefine.errors import CheckpointError, ConfigError, nearest
from calorefine.events import Columns, Events

ALONE = Ranks()


class Preprocessing(nn.Module, ABC):
    """Invertible map of features between physical units and network units.

    The constructor's arguments are its configuration, kept as attributes of the same names.  What `fit` finds goes to
    buffers, by `restore`.  A class is known by its name from its definition on: a checkpoint that names one that isn't
    known is refused, and nothing is imported for it.
    """

    known: ClassVar[dict[str, type[Preprocessing]]] = {}
    spread_within: type[NormalWithin | UniformWithin] = NormalWithin

    def __init_subclass__(cls, **options: Any) -> None:
        """Make the class known by its name.

        Raises:
            ConfigError: another module has a class of this name.
        """
        super().__init_subclass__(**options)
        if (other := cls.known.get(cls.__name__, cls)).__module__ != cls.__module__:
            msg = f"preprocessing '{cls.__name__}': {other.__module__} and {cls.__module__} define it"
            raise ConfigError(f"{msg}, expected another name for one of them")
        cls.known[cls.__name__] = cls

    def __init__(self) -> None:
        """Take no options; a class of one's own may."""
        super().__init__()

    @abstractmethod
    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit to weighted events, in place.

        Args:
            events: with finite features (n, d), those of an array beside each other; weights of any sign and positive
                sum.
            columns: their description.

        Returns:
            The same object.
        """

    @abstractmethod
    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map physical values (n, d) at context (n, c) to network values (n, k), float32."""

    @abstractmethod
    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, k) at context (n, c) to physical values (n, d), float32."""

    def bind(self, columns: Columns) -> Self:  # noqa: ARG002
        """Take what the map needs of the description of the data, in place: before a fit, and out of a checkpoint.

        Args:
            columns: as given to `fit`.

        Returns:
            The same object.
        """
        return self

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of network values k of an event; as many as columns d, but for maps that say otherwise."""

    @property
    def n_first(self) -> int:
        """How many of the network values come first where a generator makes them in two steps; 0 if it doesn't say."""
        return 0

    def part(self, place: int) -> Preprocessing:
        """Map of the network values that come first (0) or then (1), for a part of a generator; as they are.

        Its context is that of the part, in network units: the other network values come after the conditions.
        """
        return AsItIs(self.n_columns - self.n_first if place else self.n_first)

    @property
    def conditions(self) -> Preprocessing | None:
        """Map of the context that belongs to this map of the features, not fitted; None for the default one."""
        return None

    @property
    def is_discrete(self) -> bool:
        """Whether any column has atoms (values with a probability of their own) or is integer."""
        return False

    @property
    def atoms(self) -> list[torch.Tensor]:
        """Of each column the values (k,) that have a probability of their own."""
        return [torch.empty(0)] * self.n_columns

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,  # noqa: ARG002
        context: torch.Tensor,  # noqa: ARG002
        ranks: Ranks = ALONE,  # noqa: ARG002
    ) -> torch.Tensor:
        """Spread network values (n, k) of atoms and integers at context (n, c) over what is mapped to them."""
        return u

    def projected(self, u: torch.Tensor) -> torch.Tensor:
        """Network values (..., k) in which those that stand for one atom are made equal, where a map has that."""
        return u

    def observed(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Numbers (n, m) of order 1 by which critics and checkpoints may compare events, with a gradient.

        Observables of network values (n, k) at context (n, c); the values themselves if the map knows none.
        """
        return u

    @property
    def n_observed(self) -> int:
        """Number m of these."""
        return self.n_columns

    def exact(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Network values (n, k), float32, whose inverse is x (n, d), also where `forward` has a limit."""
        limited: torch.Tensor = self(x, context)
        return limited

    def with_discrete(self, u: torch.Tensor, other: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Network values u (n, d), with the discrete columns of another event (n, d)."""
        return u

    @property
    def maskable(self) -> torch.Tensor:
        """Whether each column (d,) has an atom that `parts` sets apart."""
        return torch.zeros(self.n_columns, dtype=torch.bool)

    def parts(self, u: torch.Tensor) -> Parts:
        """Values of the columns, and which of them are at an atom, of network values (n, d)."""
        none = torch.zeros_like(u, dtype=torch.bool)
        return Parts(u, none, none)

    def joined(self, y: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Network values (n, d) of `parts`."""
        return y

    def intervals(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Lower and upper end (2, n, k), float64, of the z that are mapped to x (n, d); equal where x is continuous.

        z are network values before `whiten`.  Ends are infinite for what is impossible.
        """
        z: torch.Tensor = self(x, context)
        return z.double().expand(2, -1, -1)

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        """Linear last step of the map: z (n, d) to network values (n, d)."""
        return z

    @property
    def log_whitening(self) -> torch.Tensor:
        """Log of the determinant () of `whiten`."""
        return torch.zeros((), dtype=torch.float64)

    def log_slope(self, x: torch.Tensor, ends: torch.Tensor, context: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Log of dz/dx (n, d) at x (n, d) and context (n, c) with these `intervals`, float64; 0 for what is discrete.

        Raises:
            ConfigError: the class doesn't tell.
        """
        raise ConfigError(self.no_slope)

    @property
    def no_slope(self) -> str | None:
        """Why it has no `log_slope`, without which there is no likelihood; None if it has one."""
        if type(self).log_slope is not Preprocessing.log_slope:
            return None
        return f"preprocessing {type(self).__name__}: has no log_slope, which a likelihood needs"

    def in_steps(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """What a generator makes first (n, f) and then (n, d), in physical units, of events x (n, d).

        Raises:
            ConfigError: the class doesn't tell.
        """
        raise ConfigError(f"preprocessing {type(self).__name__}: doesn't tell what comes first")

    @property
    def first_map(self) -> Preprocessing:
        """Map of what a generator makes first from physical units to the network values that come first."""
        return self.part(0)

    def to_dict(self) -> dict[str, Any]:
        """Name and configuration, plain containers; what was fitted is in `state_dict`."""
        arguments = inspect.signature(type(self)).parameters
        return {"name": type(self).__name__, "init_args": {name: getattr(self, name) for name in arguments}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], state: Mapping[str, torch.Tensor], columns: Columns) -> Preprocessing:
        """Inverse of `to_dict` and `state_dict`, for data that are described so.

        Raises:
            CheckpointError: no class of this name is known.
        """
        if (name := values["name"]) not in cls.known:
            msg = f"preprocessing '{name}' is not known{nearest(name, cls.known)}; import the module that defines it"
            raise CheckpointError(f"{msg} before the checkpoint is loaded")
        return cls.known[name](**values["init_args"]).bind(columns).restore(state)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted: buffers by name."""
        for name, value in state.items():
            self.register_buffer(name, value)
        return self


class AsItIs(Preprocessing):
    """Network values that are taken as they are, for a part of a generator.

    Args:
        n: number of them.
    """

    def __init__(self, n: int = 0) -> None:
        """Keep the number."""
        super().__init__()
        self.n = n

    def fit(self, events: Events, columns: Columns) -> AsItIs:  # noqa: ARG002
        """Find nothing."""
        return self

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return the values (n, d)."""
        return x

    def inverse(self, u: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return the values (n, d)."""
        return u

    @property
    def n_columns(self) -> int:
        """Number of values."""
        return self.n

    def log_slope(self, x: torch.Tensor, ends: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """Return 0 (n, d), float64."""
        return x.new_zeros(x.shape, dtype=torch.float64)
