"""Files with weights: rows of one or more samples in, the same rows with weights and their replicas out, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError, FitError, KeyColumnError
from calorefine.events import Arrays, Columns
from calorefine.io.chunks import Chunk, NonFinite, Request
from calorefine.io.provenance import made_by, write_json
from calorefine.io.rewrite import Rewriter, rewriting
from calorefine.io.sources import Source, TreeFormat
from calorefine.io.table import read_table
from calorefine.io.writer import replacing
from calorefine.keys import KeyArray
from calorefine.weights.bootstrap import Replica, check_blocks, replica_fit
from calorefine.weights.factorization import FactorizationResult
from calorefine.weights.linear_weights import ratio
from calorefine.weights.source import EVENT, WeightFit, WeightSource

TOLD, MOST_ODD = 10, 0.1
"""Replicas told of one by one, and the share of fits with a complaint above which there is a warning."""


class WeightedInput:
    """Rows of one or more samples, with what the weights are found from.

    Args:
        sources: the files; if `numbered`, sample k is the k-th of them.
        columns: what is read beside.
        weights: tells the branches it needs.
        nonfinite: what to do about NaN.
    """

    def __init__(
        self,
        sources: list[Source],
        columns: Columns,
        weights: WeightSource,
        nonfinite: NonFinite,
        *,
        numbered: bool = False,
    ) -> None:
        """Find out what to read."""
        self.sources, self.columns, self.numbered = sources, columns, numbered
        needed = {name: text for name, text in weights.branches.items() if not (numbered and name == "sample")}
        named = columns.expressions("features", "context") | columns.block_expressions
        self.request = Request.of(columns, needed | named, nonfinite=nonfinite)

    def read(self) -> tuple[Arrays, KeyArray]:
        """All expressions with the events' keys, and the keys (n,) that bootstrap counts go by."""
        parts = [read_table(source, self.request) for source in self.sources]
        values = [{**table, **self._number(number, len(key))} for number, (table, key, _) in enumerate(parts)]
        self._check_distinct([key for _, key, _ in parts])
        table = {name: np.concatenate([part[name] for part in values]) for name in values[0]}
        table[EVENT] = np.concatenate([event for _, _, event in parts])
        return table, self.columns.bootstrap_key(table, table[EVENT])

    def _check_distinct(self, key: list[KeyArray]) -> None:
        """Raise `KeyColumnError` if two samples hold the same event."""
        for (one, first), (other, second) in combinations(zip(self.sources, key, strict=True), 2):
            if n_shared := len(np.intersect1d(first, second)):
                msg = (
                    f"{one} and {other}: {n_shared} keys ({', '.join(self.request.key_branches)}) are in both, "
                    "expected one of its own for each event; leave events out of one sample or number productions apart"
                )
                raise KeyColumnError(msg)

    def chunks(self, copy: Rewriter) -> Iterator[tuple[Chunk, Arrays]]:
        """Rows with the branches to copy, and their expressions."""
        for number, source in enumerate(self.sources):
            for chunk in copy.chunks(source):
                yield chunk, {**chunk.values, **self._number(number, len(chunk))}

    def names(self) -> list[str]:
        """Files read."""
        return [path.name for source in self.sources for path in source.paths]

    def _number(self, number: int, n: int) -> Arrays:
        return {"sample": np.full(n, float(number))} if self.numbered else {}


class Replicas:
    """The nominal weights and those of each replica."""

    def __init__(
        self, source: WeightSource, table: Arrays, key: KeyArray, *, n: int, seed: int, refit: bool, block: list[str]
    ) -> None:
        """Fit the nominal sample and, with `refit`, each of the n replicas."""
        if n < 0:
            raise ConfigError(f"replicas: {n} found, expected 0 or more")
        self.n, self.seed, self.refit = n, seed, refit
        if n and block:
            check_blocks(key, block)
        self.nominal = source.fit(table)
        self.fits: dict[Replica, WeightFit] = {}
        self.left_out: dict[int, str] = {}
        for replica in (Replica(index, seed, refit) for index in range(1, n + 1)):
            try:
                self.fits[replica] = replica_fit(source, self.nominal, table, key, replica)
            except FitError as error:
                self.left_out[replica.index] = str(error)
        if n and not self.fits:
            raise FitError(f"none of {n} replicas could be fitted; {self.left_out[1]}")
        self.refits = {replica.index: "; ".join(fit.refits) for replica, fit in self.fits.items() if fit.refits}

    def weights(self, table: Arrays, key: KeyArray, species: str) -> NDArray[np.float32]:
        """Weights (n, replicas) of a species, counts included; 0 in replicas that are left out."""
        out = np.zeros((len(key), self.n), np.float32)
        for replica, fit in self.fits.items():
            out[:, replica.index - 1] = replica.counts(key) * fit.weights(table, species)
        return out

    def lines(self) -> list[str]:
        """How the fits of the replicas ended, for the terminal."""
        if not self.n or not self.refit:
            return []
        told = [f"  replica {index}: {text}" for index, text in self.refits.items()]
        told += [f"  left out, weights 0: {text}" for text in self.left_out.values()]
        counts = f"{self.n - len(told)} without complaint, {len(self.refits)} with, {len(self.left_out)} left out"
        lines = [f"replicas: {self.n} fits, {counts}", *told[-TOLD:]]
        lines += [f"  and {len(told) - TOLD} more, in the JSON file"] if len(told) > TOLD else []
        if len(told) > MOST_ODD * self.n:
            lines.append(f"WARNING: {len(told)} of {self.n} replicas with a complaint: fix or constrain what they name")
        return [*lines, ""]

    def to_dict(self, block: list[str]) -> dict[str, Any]:
        """What there is to know about the replicas, as JSON types."""
        made = {"n": self.n, "indices": [1, self.n], "seed": self.seed, "refit": self.refit, "block": block}
        return made | {"fits": self.refits, "left_out": self.left_out}


@dataclass(frozen=True)
class WeightedOutput:
    """What to write where, how the branches are named, and what writes each picture."""

    kind: str
    prefix: str
    path: Path
    content: dict[str, Any]
    pictures: Mapping[Path, Callable[[Path], None]]
    tree_format: TreeFormat
    overwrite: bool

    def write(self, source: WeightedInput, bootstrap: Replicas, others: Mapping[str, WeightFit]) -> list[str]:
        """Stream the input to the output with its weights, write JSON and pictures; return the new branches."""
        names = {f"{self.prefix}{name}": name for name in bootstrap.nominal.species}
        sums = {name: np.zeros((2, bootstrap.n)) for name in names}
        with rewriting(
            source.sources,
            source.request,
            self.path,
            adds=[*names, *(["sample"] if source.numbered else [])],
            hint="expected an input without weights",
            kinds=["number", "array"] if source.columns.shapes else ["number"],
            tree_format=self.tree_format,
            overwrite=self.overwrite,
        ) as copy:
            for chunk, table in source.chunks(copy):
                key = source.columns.bootstrap_key(table, chunk.event_key)
                added = self._weights(table, key, bootstrap, others)
                for name in names if bootstrap.n else ():
                    replica = added[f"{name}_replica"].astype(np.float64)
                    sums[name] += np.stack([replica.sum(axis=0), np.square(replica).sum(axis=0)])
                number = {"sample": table["sample"].astype(np.int32)} if source.numbered else {}
                copy.extend(chunk, {**number, **added})
            self._finish(copy, source, bootstrap, sums)
        return list(added)

    def _weights(
        self, table: Arrays, key: KeyArray, bootstrap: Replicas, others: Mapping[str, WeightFit]
    ) -> dict[str, NDArray[Any]]:
        added: dict[str, NDArray[Any]] = {}
        for species in bootstrap.nominal.species:
            name = f"{self.prefix}{species}"
            added[name] = bootstrap.nominal.weights(table, species)
            added |= {f"{name}_{other}": fit.weights(table, species) for other, fit in others.items()}
            if bootstrap.n:
                added[f"{name}_replica"] = bootstrap.weights(table, key, species)
        return added

    def _finish(
        self, copy: Rewriter, source: WeightedInput, bootstrap: Replicas, sums: dict[str, NDArray[np.float64]]
    ) -> None:
        replicas = bootstrap.to_dict(source.columns.block)
        replicas["n_eff"] = {
            name: ratio(total**2, squares, empty=0.0).tolist() for name, (total, squares) in sums.items()
        }
        content = self.content | {"replicas": replicas}
        copy.finish({self.kind: content, "files": source.names()})
        with replacing(self.path.with_suffix(".json"), overwrite=self.overwrite) as beside:
            write_json(beside, content | {"provenance": made_by()})
        for path, save in self.pictures.items():
            with replacing(path, overwrite=self.overwrite) as beside:
                save(beside)


@dataclass(frozen=True)
class WeightsSummary:
    """What was found, and the file written."""

    output: Path
    fit: WeightFit
    branches: list[str]
    lines: list[str] = field(default_factory=list)
    factorization: list[FactorizationResult] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        """Tables for the terminal."""
        beside = ", ".join(path.name for path in [self.output.with_suffix(".json"), *self.pictures])
        last = f"{self.output}: with {', '.join(self.branches)}; beside it {beside}"
        return "\n".join([self.fit.summary(), "", *self.lines, last])
