"""Simulator: the artefact a user keeps.  A checkpoint goes in, generated events come out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from calorefine import keys, stats
from calorefine.conditions import conditions_of, feature_of, keys_of
from calorefine.data.batches import Batch
from calorefine.data.support import Support
from calorefine.errors import CalorefineWarning, CheckpointError, ConfigError
from calorefine.events import Columns, Events
from calorefine.io.provenance import digest, made_by
from calorefine.io.saved import read_saved
from calorefine.io.writer import replacing
from calorefine.models import MODELS
from calorefine.models.abilities import Encoding, Likelihood, without_likelihood
from calorefine.models.base import CHECKPOINT_KEY, GenerativeModel
from calorefine.models.checkpoint import rebuilt
from calorefine.twosample.estimates import Linearized
from calorefine.twosample.results import LatentDistance

BLOCK, BLOCK_VALUES = 8192, 2**22
COMBINATION = "in combination"  # beside the names of the context's columns, which are no two words
MAP_KEY = "calorefine_map"  # entry of a file of several simulators, see `simulator_map`
CHECKPOINT = {"what": "checkpoint of calorefine", "expected": "one written by 'lightning fit' or 'calorefine merge'"}
MIN_ROWS = 16  # smaller matrix products are summed in another order, and would differ in the last digits


class AnySimulator(ABC):
    """What generates events at conditions: a `Simulator`, or a `SimulatorMap` of several.

    Attributes:
        columns: what it generates, and the conditions that this depends on.
        spec: description of model and training data: plain containers, among them `model`, `columns`, `domain` (c, 2)
            and `provenance`.
    """

    columns: Columns
    spec: dict[str, Any]

    @abstractmethod
    def sample(
        self,
        context: Mapping[str, ArrayLike],
        *,
        seed: int,
        key: keys.KeyArray | None = None,
        n_per_event: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Generate events at the given conditions; see `Simulator.sample`."""

    @abstractmethod
    def log_prob(self, table: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Log density (n,) of events given their context; see `Simulator.log_prob`."""

    @abstractmethod
    def inside(self, context: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
        """Tell which conditions (n,) are within the training range, by what they are inside of."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write a file from which it can be loaded."""

    @property
    @abstractmethod
    def models(self) -> dict[str, GenerativeModel]:
        """Its trained models, by what tells them apart in messages: nothing where there is one."""

    def count_outside(self, context: Mapping[str, ArrayLike]) -> Counter[str]:
        """Count the conditions for which `inside` is false, by the same names."""
        return Counter({name: int(np.sum(~inside)) for name, inside in self.inside(context).items()})

    def require_likelihood(self) -> None:
        """Refuse a model without a likelihood.

        Raises:
            ConfigError: it has none.
        """
        able = [name for name, model in MODELS.items() if issubclass(model, Likelihood)]
        for where, model in self.models.items():
            if reason := without_likelihood(model):
                msg = reason if isinstance(model, Likelihood) else f"{reason}, expected one of {', '.join(able)}"
                raise ConfigError(f"{where}: {msg}" if where else msg)

    @property
    def has_likelihood(self) -> bool:
        """Whether `log_prob` can tell."""
        return not any(map(without_likelihood, self.models.values()))


class Simulator(AnySimulator):
    """A trained generator with all that sampling needs.

    Args:
        model: the recipe with its trained networks.
        spec: description of model and training data, plain containers.
    """

    def __init__(self, model: GenerativeModel, spec: Mapping[str, Any]) -> None:
        """Freeze the model."""
        self.model = model.eval().requires_grad_(requires_grad=False)
        self.spec = dict(spec)
        self.columns = Columns.from_dict(spec["columns"])
        self.domain = np.asarray(spec["domain"], np.float64).reshape(-1, 2)
        self.support = Support.from_dict(spec["support"]) if spec.get("support") else None

    @classmethod
    def load(cls, path: str | Path, *, models: Iterable[type[GenerativeModel]] = ()) -> Simulator:
        """Load a checkpoint written by `lightning fit` or by `save`, without running code from it.

        Args:
            path: of the checkpoint.
            models: recipes from outside of calorefine; those that have been imported are known without.

        Raises:
            CheckpointError: the file is missing, is no checkpoint of calorefine, was written by a newer version, or
                holds a recipe that is not known: nothing is imported because a checkpoint names it.
        """
        path = Path(path)
        content = read_saved(path, CHECKPOINT_KEY, MAP_KEY, **CHECKPOINT)
        if MAP_KEY in content:
            raise CheckpointError(
                f"{path}: holds a map of simulators, expected one; calorefine.load_simulator reads both"
            )
        return cls.from_saved(content, path, models=models)

    @classmethod
    def from_saved(
        cls, content: Mapping[str, Any], path: Path, *, models: Iterable[type[GenerativeModel]] = ()
    ) -> Simulator:
        """Put it together from the content of a file.

        Args:
            content: as `saved` gives it.
            path: of the file, for messages.
            models: as for `load`.

        Raises:
            CheckpointError: as by `load`.
        """
        with rebuilt(content, path, models=models) as (model, spec):
            simulator = cls(model, spec)
            simulator._try()
        return simulator

    @torch.inference_mode()
    def _try(self) -> None:
        """Generate at the middle of the domain: what was put together of parts that don't fit, can't."""
        n_context = len(self.columns.context_names)
        if self.domain.shape != (n_context, 2):
            raise ValueError(f"domain of shape {self.domain.shape}, expected {(n_context, 2)}")
        dict(self.spec["provenance"])
        encoded = np.tile(self.domain.mean(axis=1).astype(np.float32), (MIN_ROWS, 1))
        out = np.empty((MIN_ROWS, self.columns.n_features), np.float32)
        self._fill(out, encoded, keys.make_keys([np.arange(MIN_ROWS)]))
        self.columns.decode_features(out)
        self.in_domain(encoded)

    def save(self, path: str | Path) -> None:
        """Write a slim checkpoint, without the state of the training."""
        with replacing(Path(path), overwrite=True) as beside:
            torch.save(self.saved(), beside)

    def saved(self) -> dict[str, Any]:
        """Content of such a checkpoint: plain containers and tensors."""
        return {CHECKPOINT_KEY: self.spec, "state_dict": self.model.state_dict()}

    @property
    def models(self) -> dict[str, GenerativeModel]:
        """The model."""
        return {"": self.model}

    def sample(
        self,
        context: Mapping[str, ArrayLike],
        *,
        seed: int,
        key: keys.KeyArray | None = None,
        n_per_event: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Generate events at the given conditions.

        The values of an event are a function of its key, `seed` and the number of the copy alone.

        Args:
            context: arrays (n,) by name of context column, in the units of `columns`; categories by their value.
            seed: seed of the latent noise.
            key: (n,) uint64; the row number serves if it is left out.
            n_per_event: how many events to generate at each condition; copies of an event follow each other.

        Returns:
            Features by name, (n * n_per_event,) or (n * n_per_event, *shape) of an array, in the units of `columns`,
            unweighted; float32, float64 of a column with an offset.  And `in_domain` (n * n_per_event,) bool: whether
            there are training events at such conditions, as `inside` tells.

        Raises:
            ConfigError: a context column is missing or has another length, or `n_per_event` is less than 1.
            ValueRangeError: values are NaN, infinite, or no numbers.
        """
        encoded = self._encode(context, n_unconditional=0 if key is None else len(key))
        key = keys_of(key, len(encoded), n_per_event)
        out = np.empty((n_per_event, len(encoded), self.columns.n_features), np.float32)
        for copy in range(n_per_event):
            self._fill(out[copy], encoded, keys.stream(key, "latent", seed=seed, copy=copy))
        x = out.swapaxes(0, 1).reshape(-1, out.shape[2])
        return self.columns.decode_features(x) | {"in_domain": np.repeat(self.in_domain(encoded), n_per_event)}

    @torch.inference_mode()
    def log_prob(self, table: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Log density of events given their context, in original units, for a model that has a likelihood.

        Args:
            table: arrays (n,) by name of feature and of context column, in the units of `columns`; (n, *shape) of a
                feature that is an array.

        Returns:
            (n,) in nats: of a density per product of the features' units; of a probability where a feature is an atom
            or an integer; -inf for what is impossible.  Where `inside` tells that there are no training events at such
            conditions, it is an extrapolation.

        Raises:
            ConfigError: the model has no likelihood, or a column is missing or has another length.
            ValueRangeError: values are NaN, infinite, or no numbers.
        """
        self.require_likelihood()
        model = cast(Likelihood, self.model)
        encoded = self._encode(table, n_unconditional=len(np.atleast_1d(table[next(iter(self.columns.features))])))
        shapes = {name: (len(encoded), *self.columns.shapes.get(name, ())) for name in self.columns.features}
        x = self.columns.encode_features({name: feature_of(table, name, shape) for name, shape in shapes.items()})
        out = np.empty(len(x))
        for first in range(0, len(x), BLOCK):
            rows = slice(first, first + BLOCK)
            out[rows] = model.log_prob(torch.from_numpy(x[rows]), torch.from_numpy(encoded[rows])).numpy()
        return out

    @torch.inference_mode()
    def latent_distance(self, events: Events) -> LatentDistance:
        """Energy distance of the codes of reference events from the prior, for a model that encodes events.

        Of more than 8192 events the first ones are compared.  The error is twice that of the mean of the events' terms,
        as for all means over pairs; terms of equal event keys are summed before they are squared.

        Args:
            events: as `columns` has them, weights of any sign.

        Raises:
            ConfigError: the model has no codes.
        """
        if not isinstance(self.model, Encoding):
            able = [name for name, model in MODELS.items() if issubclass(model, Encoding)]
            raise ConfigError(f"a {self.spec['model']} encodes no events, expected one of {', '.join(able)}")
        arrays = (np.asarray(part, np.float32) for part in (events.x, events.context, events.weight))
        terms = self.model.latent_terms(Batch(*map(torch.from_numpy, arrays))).numpy().astype(np.float64)
        value = float(terms.mean())
        mean = Linearized(value, 2 * (terms - value) / len(terms))
        group = keys.group(events.event_key[: len(terms)])
        return LatentDistance(value, float(np.sqrt(stats.sum_w2(mean.grouped(group, 0)))))

    def in_domain(self, encoded: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Tell for which rows of encoded context (n, c) there are training events, as `inside` does."""
        return np.asarray(np.logical_and.reduce([np.ones(len(encoded), bool), *self._inside(encoded).values()]))

    def inside(self, context: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.bool_]]:
        """Tell which conditions (n,) are within the training range, by context column, and under `COMBINATION`.

        That is false for conditions that are within all ranges and far from any training event, as `Support` has it.
        """
        return self._inside(self._encode(context))

    def _inside(self, encoded: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
        out = self.columns.inside(encoded, self.domain)
        if self.support:
            within = self.columns.in_domain(encoded, self.domain)
            out[COMBINATION] = ~within
            out[COMBINATION][within] = self.support.holds(encoded[within])
        return out

    def _encode(self, context: Mapping[str, ArrayLike], *, n_unconditional: int = 0) -> NDArray[np.float32]:
        table = conditions_of(context, self.columns)
        return self.columns.encode_context(table, strict=False) if table else np.zeros((n_unconditional, 0), np.float32)

    @torch.inference_mode()
    def _fill(self, out: NDArray[np.float32], encoded: NDArray[np.float32], latent_key: keys.KeyArray) -> None:
        """Generate block by block, so that the working set stays in the cache."""
        model = self.model
        block = max(MIN_ROWS, min(BLOCK, BLOCK_VALUES // out.shape[1]))
        for first in range(0, len(out), block):
            size = min(block, len(out) - first)
            rows = np.minimum(np.arange(first, first + max(size, MIN_ROWS)), len(out) - 1)
            latent = torch.from_numpy(keys.normal(latent_key[rows], model.latent_size))
            context = torch.from_numpy(encoded[rows])
            u = model.generate(latent, model.context(context))
            out[first : first + size] = model.features.inverse(u, context).numpy()[:size]


def outside_domain(flag: str, n_outside: int, n: int, by_column: Mapping[str, int]) -> str:
    """Report of how many of n conditions are outside the training domain, for the terminal."""
    columns = ", ".join(f"{name} {count}" for name, count in by_column.items() if count)
    text = f"outside the training domain ({flag} = false): {n_outside} conditions, {n_outside / max(n, 1):.2%}"
    return text + (f" ({columns})" if columns else "")


def warn_of_outside(source: str, n_outside: int, n: int, by_column: Mapping[str, int], simulator: AnySimulator) -> None:
    """Warn if most of n conditions are outside the training domain, as those in another unit are."""
    if 2 * n_outside <= n:
        return
    most, count = max(by_column.items(), key=lambda one: one[1], default=("", 0))
    text = f"{source}: {n_outside} of {n} conditions are outside the training domain"
    if 2 * count > n and most in simulator.columns.context_names:
        low, high = simulator.spec["domain"][simulator.columns.context_names.index(most)]
        text += f"; the training sample had '{most}' from {low:.6g} to {high:.6g}, here {count} are not: another unit?"
    warnings.warn(text, CalorefineWarning, stacklevel=3)


def provenance(simulator: AnySimulator, checkpoint: Path) -> dict[str, Any]:
    """Versions, model, checkpoint and training data, as JSON types."""
    return {
        **made_by(),
        "model": simulator.spec["model"],
        **{f"checkpoint{end}": value for end, value in identity(checkpoint).items()},
        **{name: simulator.spec[name] for name in ("teacher",) if name in simulator.spec},
        "training": simulator.spec["provenance"],
        "columns": simulator.spec["columns"],
    }


def identity(path: Path) -> dict[str, str]:
    """Name and digest of a file, by the end of their names in a provenance."""
    return {"": path.name, "_sha256": digest(path)}
