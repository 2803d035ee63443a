"""EventDataModule: from ROOT files to whole batches of tensors, split by event key."""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from calorefine import keys, stats
from calorefine.data.batches import Batch, BatchDataset, Epoch, ShuffledBatches, counted
from calorefine.data.column_transforms import ColumnTransforms, Conditions, row_blocks
from calorefine.data.plain_cells import PlainCells  # noqa: F401 (known by its name)
from calorefine.data.preprocessing import Preprocessing
from calorefine.data.remarks import dominant, remarks
from calorefine.data.showers import Showers  # noqa: F401 (known by its name)
from calorefine.data.support import Support
from calorefine.ddp import Ranks
from calorefine.errors import (
    CalorefineNote,
    CalorefineWarning,
    ColumnWarning,
    ConfigError,
    EmptySelectionError,
    ValueRangeError,
)
from calorefine.events import Columns, Events
from calorefine.io.chunks import NonFinite, Request
from calorefine.io.formats import open_source
from calorefine.io.sample import require_readable
from calorefine.io.table import memory_map, read_table
from calorefine.weights import PositiveResult, PositiveWeights, Replica, WeightFit, WeightSource, replica_fit
from calorefine.weights.bootstrap import check_blocks
from calorefine.weights.source import EVENT, Dependence

logger = logging.getLogger(__name__)
VALIDATION_EVENTS = 8192
_INPUT = "\0regression of positive weights, "


@dataclass(frozen=True)
class Prepared:
    """What a model needs to know about its training data, beside the batches.

    Args:
        columns: the description of the data.
        features: preprocessing of x.
        context: preprocessing of the encoded context.
        domain: (c, 2) smallest and largest training value of each encoded context column.
        mean_weight: mean weight of the training events, in batches.
        provenance: source, number of events, sums of weights, digest: plain containers.
        support: which combinations of the context training events have, if that is known.
    """

    columns: Columns
    features: Preprocessing
    context: Preprocessing
    domain: NDArray[np.float64]
    mean_weight: float
    provenance: dict[str, Any]
    support: Support | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for the checkpoint, which holds the tensors of the maps beside."""
        return {
            "columns": self.columns.to_dict(),
            "preprocessing": self.features.to_dict(),
            "conditions": self.context.to_dict(),
            "domain": self.domain.tolist(),
            "support": self.support.to_dict() if self.support else None,
            "mean_weight": self.mean_weight,
            "provenance": self.provenance,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Prepared:
        """Inverse of `to_dict`.

        Args:
            values: plain containers.
            state: tensors, those of the maps with names that start with "features." and "context.".
        """
        maps = {
            part: {
                name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")
            }
            for part in ("features", "context")
        }
        default, default_context = (  # of checkpoints before there was a choice
            {"name": kind.__name__, "init_args": {}} for kind in (ColumnTransforms, Conditions)
        )
        columns = Columns.from_dict(values["columns"])
        return cls(
            columns=columns,
            features=Preprocessing.from_dict(values.get("preprocessing", default), maps["features"], columns),
            context=Preprocessing.from_dict(values.get("conditions", default_context), maps["context"], columns),
            domain=np.asarray(values["domain"], np.float64).reshape(-1, 2),
            mean_weight=values["mean_weight"],
            provenance=values["provenance"],
            support=Support.from_dict(values["support"]) if values.get("support") else None,
        )


class EventDataModule(pl.LightningDataModule):
    """Weighted events from ROOT files, split by event into training and validation.

    Args:
        files: a path, a glob, or a list of both.
        tree: name of the TTree or RNTuple.
        columns: features, context, key and cut.
        friends: files with further branches of the same rows (weights), one for each of `files`, in their order; of a
            tree with another name, `weights.root:tree`.
        friends_by: integer branches of both by which the rows of friends are found, if those are in another order.
        weights: where weights come from: a branch or expression ("sw_signal"), a source that is fitted at set-up (an
            sPlot fit, label fractions), or "none" for weight 1.
        preprocessing: map of the features to network units; by weighted quantiles (`ColumnTransforms`) if left out.
        positive: how to turn signed weights into positive ones, E[w | x, context], for models that need them.
        replica: which bootstrap copy of the sample; replica 0, the nominal one, if left out.
        batch_size: events in a batch; the rest of an epoch that fills no batch is left out.  Processes that train
            together share each batch.  A bootstrap copy trains on the events that it counts, in as many batches as
            the nominal sample; they are smaller by as much.
        validation_fraction: fraction of the events that is held out, by hash of their key.
        split_seed: seed of that split.
        dependence: what to do if what a fit of the weights assumes fails a test beyond doubt (a spectator's shape that
            depends on a column): "error", or "warn" to go on.
        nonfinite: "error", or "drop" to leave out rows with NaN or infinite values.
        max_memory_gb: above this size the data are memory-mapped files.
        cache_dir: folder of those files; the system's folder for temporary files if left out.
    """

    def __init__(
        self,
        *,
        files: str | list[str],
        tree: str,
        columns: Columns,
        friends: list[str] | None = None,
        friends_by: list[str] | None = None,
        weights: WeightSource | str = "none",
        preprocessing: Preprocessing | None = None,
        positive: PositiveWeights | None = None,
        replica: Replica = Replica(),  # noqa: B008 (immutable)
        batch_size: int = 512,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        dependence: Dependence = "error",
        nonfinite: NonFinite = "error",
        max_memory_gb: float = 4.0,
        cache_dir: str | None = None,
    ) -> None:
        """Keep the options; nothing is read before `setup`."""
        super().__init__()
        if not 0 < validation_fraction < 1:
            raise ConfigError(f"validation_fraction: {validation_fraction} found, expected between 0 and 1")
        if batch_size < 2:
            raise ConfigError(f"batch_size: {batch_size} found, expected at least 2")
        require_readable(columns.features)
        self.source = open_source(files, tree, friends, friends_by)
        self.columns = columns
        self.weights = weights
        self.preprocessing = preprocessing or ColumnTransforms()
        self.positive = positive
        self.replica = replica
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.dependence = dependence
        self.nonfinite = nonfinite
        self.max_memory_gb = max_memory_gb
        self.cache_dir = Path(cache_dir) if cache_dir else None
        self.prepared: Prepared | None = None
        self._rows: tuple[dict[str, NDArray[Any]], keys.KeyArray, keys.KeyArray] | None = None
        self._rows_digest = ""
        self._nominal_fit: WeightFit | None = None
        self.weight_fit: WeightFit | None = None
        self.positive_result: PositiveResult | None = None

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002 (signature fixed by Lightning)
        """Read, weight, split and preprocess the events; done once."""
        if self.prepared is not None:
            return
        events, signed, used = self._read()
        held_out = self._held_out(events)
        if not used.all() and self.replica.index == 0:
            text = f"{np.sum(~used)} of {len(used)} events have weight 0; they are left out of the training"
            warnings.warn(f"{self.source}: {text}", CalorefineNote, stacklevel=2)
        self.epoch = self._epoch(int(np.sum(used & ~held_out)))
        train, validation = (counted(events, *part) for part in ((~held_out, self.epoch.n_events), (held_out, 2)))
        self.train, self.validation = events.take(train), events.take(validation)
        self.n_eff_signed = stats.n_eff(signed[~held_out])
        try:
            self.prepared = self._prepare(signed[train])
        except ValueRangeError as error:
            if self.replica.index == 0:
                raise
            raise ValueRangeError(f"replica {self.replica.index}, of the events that it counts: {error}") from error
        for what, part in (("training", self.train), ("held-out", self.validation)):
            if heaviest := dominant(part, self.columns):
                where = f"{self.source}, weights '{self._weight_name()}', {what} events"
                warnings.warn(f"{where}: {heaviest}", CalorefineWarning, stacklevel=2)
        for text in remarks(self.train, self.columns) if self.replica.index == 0 else ():
            warnings.warn(f"{self.source}: {text}", ColumnWarning, stacklevel=2)
        self._train_set = self._to_network(self.train, self.prepared)

    def read(self) -> Events:
        """Read all selected events with their weights, bootstrap counts included.

        Raises:
            ConfigError: a replica of weights that can't be found again.
            WeightError: the weights don't have a positive sum.
        """
        return self._read()[0]

    def _read(self) -> tuple[Events, NDArray[np.float64], NDArray[np.bool_]]:
        """Events, their weights (n,) before positive ones are made of them, and whether (n,) these are not 0.

        Bootstrap counts are included in both weights; an event that a replica doesn't count has a weight nevertheless.
        So has one whose positive weight is 0, which differs between replicas: their epochs have as many batches.
        """
        table, key, event_key = self._rows = self._rows or self._read_rows()
        block_key = self.columns.bootstrap_key(table, event_key)
        self.columns = self.columns.centered(table)
        if self.replica.index and self.columns.block:
            check_blocks(block_key, self.columns.block)
        counts = self.replica.counts(block_key)
        weight = self._weight({**table, EVENT: event_key}, block_key)
        signed, used = counts * weight, weight != 0
        self.weights_dof = stats.weights_dof(signed, keys.group(block_key))
        stats.require_positive_sum(signed, f"{self.source}, weights '{self._weight_name()}'")
        x, context = self.columns.encode_features(table), self.columns.encode_context(table)
        if self.positive is not None:
            events = Events(x, context, weight, key, event_key)
            self.positive_result = self._positive(self.positive, events, table, counts)
            weight = self.positive_result.weight
        return Events(x, context, counts * weight, key, event_key), signed, used

    def _positive(
        self, positive: PositiveWeights, events: Events, table: Mapping[str, NDArray[Any]], counts: NDArray[Any]
    ) -> PositiveResult:
        """Positive weights by the features, or by what the regression is to see in their place, and the context."""
        names, arrays = self.columns.feature_names, {n: self.columns.slices[n] for n in self.columns.shapes}
        if positive.inputs:
            names, arrays = positive.inputs, {}
            values = np.stack([table[_INPUT + text] for text in positive.inputs], axis=1)
            events = replace(events, x=values.astype(np.float32))
        names = names + self.columns.context_names
        return positive.fit(events, multiplicity=counts, names=names, arrays=arrays)

    def _read_rows(self) -> tuple[dict[str, NDArray[Any]], keys.KeyArray, keys.KeyArray]:
        """Columns (n,), keys (n,) and event keys (n,) of the selected rows."""
        named = self.columns.expressions("features", "context") | self.columns.block_expressions
        inputs = self.positive.inputs if self.positive else []
        wanted = self._weight_expressions() | named | {_INPUT + text: text for text in inputs}
        request = Request.of(self.columns, wanted, nonfinite=self.nonfinite)
        return read_table(self.source, request, max_memory_gb=self.max_memory_gb, cache_dir=self.cache_dir)

    def digest_of_rows(self) -> str:
        """SHA-256 over keys and columns of the selected rows, before any fit: the same for all replicas."""
        table, key, event_key = self._rows = self._rows or self._read_rows()
        self._rows_digest = self._rows_digest or _sha256(key, event_key, *(table[name] for name in sorted(table)))
        return self._rows_digest

    def for_replica(self, replica: Replica) -> EventDataModule:
        """Return the data of another replica, not set up; rows and nominal fit are shared with this one once read."""
        other = copy.copy(self)
        other.replica, other.prepared = replica, None
        return other

    def split(self, events: Events) -> tuple[Events, Events]:
        """Split by event key, so that the candidates of an event stay together.

        Raises:
            EmptySelectionError: one side is empty.
        """
        held_out = self._held_out(events)
        return events.take(~held_out), events.take(held_out)

    def _held_out(self, events: Events) -> NDArray[np.bool_]:
        draw = keys.uniform(keys.stream(events.event_key, "split", seed=self.split_seed))
        held_out: NDArray[np.bool_] = draw < self.validation_fraction
        if held_out.all() or not held_out.any():
            msg = (
                f"{self.source}: {len(events)} events can't be split into training and validation; expected more events"
            )
            raise EmptySelectionError(msg)
        return held_out

    @property
    def network_events(self) -> Batch:
        """All training events in network units."""
        return self._train_set.events

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; the order is a function of the global seed and the epoch alone.

        Raises:
            ConfigError: processes can't share a batch evenly.
        """
        ranks = Ranks.of(self.trainer) if self.trainer else Ranks()
        sampler = ShuffledBatches(len(self.train), self.epoch, seed=torch.initial_seed() % 2**31, ranks=ranks)
        return DataLoader(self._train_set, sampler=sampler, batch_size=None)

    def identity(self) -> dict[str, str]:
        """What processes that train together must agree on, by name."""
        events = {"training": self.train, "held-out": self.validation}
        found = {f"{name} events (digest)": digest_of_events(part)[:12] for name, part in events.items()}
        return found | {"batch_size": str(self.batch_size), "seed": str(torch.initial_seed())}

    def val_dataloader(self) -> DataLoader[Batch]:
        """All held-out events, in physical units, as one batch: the validation distance compares all pairs of them.

        Of a replica those that it counts.  Of more than 8192 it compares the first ones: they are then in the order of
        a hash of their keys.
        """
        if len(self.validation) <= VALIDATION_EVENTS:
            return self.predict_dataloader()
        return self._held_out_loader(np.argsort(keys.stream(self.validation.key, "validation"), kind="stable"))

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader[Batch]:
        """All held-out events, of a replica those that it counts, in physical units, in the order of the files."""
        return self._held_out_loader(np.arange(len(self.validation)))

    def _held_out_loader(self, order: NDArray[np.int64]) -> DataLoader[Batch]:
        held_out = self.validation
        arrays = (held_out.x, held_out.context, self._batch_weight(held_out))
        dataset = BatchDataset(Batch(*(torch.from_numpy(array) for array in arrays)))
        return DataLoader(dataset, sampler=[torch.from_numpy(order)], batch_size=None)

    def _epoch(self, n: int) -> Epoch:
        """Batches of an epoch, if the split has left `n` events for training."""
        size = min(self.batch_size, n)
        epoch = Epoch(size, n // size)
        return epoch.of_replica() if self.replica.index else epoch

    def _weight_name(self) -> str:
        return self.weights if isinstance(self.weights, str) else type(self.weights).__name__

    def _weight_expressions(self) -> dict[str, str]:
        if isinstance(self.weights, str):
            return {} if self.weights == "none" else {"\0weight": self.weights}
        return self.weights.branches

    def _weight(self, table: Mapping[str, NDArray[Any]], block_key: keys.KeyArray) -> NDArray[np.float64]:
        """Weights (n,) of the replica, without its counts."""
        if not isinstance(self.weights, str):
            if self._nominal_fit is None:
                self._nominal_fit = self.weights.fit(table)
                columns = self.columns.totals(table)
                self.weights.check(self._nominal_fit, table, columns, dependence=self.dependence)
            self.weight_fit = replica_fit(self.weights, self._nominal_fit, table, block_key, self.replica)
            for text in self.weight_fit.refits:
                logger.warning("replica %d of the weights: %s", self.replica.index, text)
            return self.weight_fit.weights(table)
        if self.weights == "none":
            return np.ones(len(block_key))
        self.require_replicas(self.replica.index)
        return np.asarray(table["\0weight"], np.float64)

    def require_replicas(self, number: int) -> None:
        """Refuse a replica of weights whose fit can't be redone.

        Args:
            number: of the replica; 0 is the nominal sample.

        Raises:
            ConfigError: it is one.
        """
        if number and self.replica.refit and isinstance(self.weights, str) and self.weights != "none":
            msg = f"data.weights: '{self.weights}' is a branch, so the fit behind it can't be redone for replica "
            msg += (
                f"{number}; give the fit itself (class_path: SPlot), or accept replicas without the fit's uncertainty, "
            )
            raise ConfigError(f"{msg}in the configuration of the training: data: {{replica: {{refit: false}}}}")

    def _prepare(self, signed: NDArray[np.float64]) -> Prepared:
        """Fit all to the training events, whose weights (n,) before positive ones were made of them are these."""
        train, columns = self.train, self.columns
        for name, events in (("training", train), ("held-out", self.validation)):
            stats.require_positive_sum(events.weight, f"{self.source}, {name} events")
        context = train.context[train.weight != 0]
        features = copy.deepcopy(self.preprocessing)
        domain = np.stack([context.min(axis=0), context.max(axis=0)], axis=1).astype(np.float64)
        return Prepared(
            columns=columns,
            features=features.fit(train, columns),
            context=(features.conditions or Conditions()).fit(train, columns),
            domain=domain,
            mean_weight=float(self._batch_weight(train).mean(dtype=np.float64)),
            provenance=self._provenance(),
            support=Support.fit(train.context, signed, train.event_key, columns),
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            **self.source.told(),
            "weights": self._weight_name(),
            "weight_fit": self.weight_fit.to_dict() if self.weight_fit else None,
            "positive": self.positive_result.to_dict() if self.positive_result else None,
            "replica": asdict(self.replica) | {"block": self.columns.block},
            "n_train": len(self.train),
            "n_validation": len(self.validation),
            "sum_w": stats.sum_w(self.train.weight),
            "n_eff": stats.n_eff(self.train.weight),
            "n_eff_signed": self.n_eff_signed,
            "weights_dof": self.weights_dof,
            "digest": digest_of_events(self.train),
            "rows_digest": self.digest_of_rows(),
        }

    def _to_network(self, events: Events, prepared: Prepared) -> BatchDataset:
        """Map events to network units once, into memory-mapped files if they don't fit."""
        maps = (prepared.features, prepared.context)
        large = 4 * len(events) * sum(module.n_columns for module in maps) > self.max_memory_gb * 1e9
        arrays = []
        for module, values in zip(maps, ((events.x, events.context), (events.context,)), strict=True):
            shape = (len(events), module.n_columns)
            out = memory_map(shape, np.float32, self.cache_dir) if large else np.empty(shape, np.float32)
            for rows in row_blocks(len(events), module.n_columns):
                out[rows] = module(*(torch.from_numpy(part[rows]) for part in values)).numpy()
            arrays.append(torch.from_numpy(out))
        arrays.append(torch.from_numpy(self._batch_weight(events)))
        return BatchDataset(Batch(*arrays))

    def _batch_weight(self, events: Events) -> NDArray[np.float32]:
        """Weights (n,) whose mean over the training events is about 1, so that squares fit in single precision.

        They are divided by a power of 2, which changes no other digit; those of usual size stay as they are.
        """
        mean = stats.sum_w(self.train.weight) / len(self.train)
        scale = 2.0 ** (-16 * np.round(np.log2(mean) / 16))
        return np.asarray(scale * events.weight, np.float32)


def digest_of_events(events: Events) -> str:
    """SHA-256 over keys, features, context and weights: two trainings with the same digest saw the same data."""
    return _sha256(events.key, events.x, events.context, events.weight)


def _sha256(*arrays: NDArray[Any]) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
