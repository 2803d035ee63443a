"""Files with weights: rows of one or more samples in, the same rows with weights and their replicas out, streamed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import CalorefineWarning, ConfigError, KeyColumnError
from calorefine.events import Columns
from calorefine.io.root import Chunk, NonFinite, Request, RootFiles, read_table
from calorefine.io.writer import TreeFormat, TreeWriter, not_an_input, replacing, write_tree
from calorefine.keys import KeyArray
from calorefine.weights.bootstrap import Replica, check_blocks, replica_fit
from calorefine.weights.source import WeightFit, WeightSource

Table = dict[str, NDArray[Any]]


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
        sources: list[RootFiles],
        columns: Columns,
        weights: WeightSource,
        nonfinite: NonFinite,
        *,
        numbered: bool = False,
    ) -> None:
        """Find out what to read; branches that are no numbers are left out with a warning."""
        self.sources, self.columns, self.numbered = sources, columns, numbered
        needed = {name: text for name, text in weights.branches.items() if not (numbered and name == "sample")}
        named = columns.expressions("features", "context") | columns.block_expressions
        kept, left_out = _numeric(sources)
        if left_out:
            msg = f"{sources[0]}: branches {', '.join(left_out)} are left out: not one number per event in all samples"
            warnings.warn(msg, CalorefineWarning, stacklevel=3)
        self.request = Request(
            needed | named, columns.key, columns.candidate, columns.cut, branches=kept, nonfinite=nonfinite
        )

    def read(self) -> tuple[Table, KeyArray]:
        """All expressions, and the keys (n,) that bootstrap counts go by."""
        parts = [read_table(source, self._without_branches()) for source in self.sources]
        values = [table | self._number(number, len(key)) for number, (table, key, _) in enumerate(parts)]
        self._check_distinct([key for _, key, _ in parts])
        table = {name: np.concatenate([part[name] for part in values]) for name in values[0]}
        return table, self.columns.bootstrap_key(table, np.concatenate([event for _, _, event in parts]))

    def _check_distinct(self, key: list[KeyArray]) -> None:
        """Raise `KeyColumnError` if two samples hold the same event."""
        for (one, first), (other, second) in combinations(zip(self.sources, key, strict=True), 2):
            if n_shared := len(np.intersect1d(first, second)):
                msg = (
                    f"{one} and {other}: {n_shared} keys ({', '.join(self.request.key_branches)}) are in both, "
                    "expected one of its own for each event; leave events out of one sample or number productions apart"
                )
                raise KeyColumnError(msg)

    def chunks(self) -> Iterator[tuple[Chunk, Table]]:
        """Rows with their branches, and their expressions."""
        for number, source in enumerate(self.sources):
            for chunk in source.chunks(self.request):
                yield chunk, chunk.values | self._number(number, len(chunk))

    def names(self) -> list[str]:
        """Files read."""
        return [path.name for source in self.sources for path in source.paths]

    def _number(self, number: int, n: int) -> Table:
        return {"sample": np.full(n, float(number))} if self.numbered else {}

    def _without_branches(self) -> Request:
        r = self.request
        return Request(r.expressions, r.key, r.candidate, r.cut, nonfinite=r.nonfinite)


class Replicas:
    """The nominal weights and those of each replica."""

    def __init__(
        self, source: WeightSource, table: Table, key: KeyArray, *, n: int, seed: int, refit: bool, block: list[str]
    ) -> None:
        """Fit the nominal sample and, with `refit`, each of the n replicas."""
        if n < 0:
            raise ConfigError(f"replicas: {n} found, expected 0 or more")
        self.n, self.seed, self.refit = n, seed, refit
        if n and block:
            check_blocks(key, block)
        self.nominal = source.fit(table)
        self.replicas = [Replica(index, seed, refit) for index in range(1, n + 1)]
        self.fits = [replica_fit(source, self.nominal, table, key, replica) for replica in self.replicas]

    def weights(self, table: Table, key: KeyArray, species: str) -> NDArray[np.float32]:
        """Weights (n, replicas) of a species, counts included."""
        out = np.empty((len(key), self.n), np.float32)
        for index, (replica, fit) in enumerate(zip(self.replicas, self.fits, strict=True)):
            out[:, index] = replica.counts(key) * fit.weights(table, species)
        return out


@dataclass(frozen=True)
class WeightedOutput:
    """What to write where, and how the branches are named."""

    kind: str
    prefix: str
    path: Path
    content: dict[str, Any]
    pictures: dict[Path, Any]
    tree_format: TreeFormat
    overwrite: bool

    def write(self, source: WeightedInput, bootstrap: Replicas, others: Mapping[str, WeightFit]) -> list[str]:
        """Stream the input to the output with its weights, write JSON and pictures; return the new branches."""
        names = {f"{self.prefix}{name}": name for name in bootstrap.nominal.species}
        self._check_names(source, [*names, *(["sample"] if source.numbered else [])])
        not_an_input(self.path, [path for one in source.sources for path in one.paths])
        sums = {name: np.zeros((2, bootstrap.n)) for name in names}
        with write_tree(
            self.path, source.sources[0].tree, tree_format=self.tree_format, overwrite=self.overwrite
        ) as writer:
            for chunk, table in source.chunks():
                key = source.columns.bootstrap_key(table, chunk.event_key)
                added = self._weights(table, key, bootstrap, others)
                for name in names if bootstrap.n else ():
                    replica = added[f"{name}_replica"].astype(np.float64)
                    sums[name] += np.stack([replica.sum(axis=0), np.square(replica).sum(axis=0)])
                number = {"sample": table["sample"].astype(np.int32)} if source.numbered else {}
                writer.extend({**chunk.branches, **number, **added})
            self._finish(writer, source, bootstrap, sums)
        return list(added)

    def _weights(
        self, table: Table, key: KeyArray, bootstrap: Replicas, others: Mapping[str, WeightFit]
    ) -> dict[str, NDArray[Any]]:
        added: dict[str, NDArray[Any]] = {}
        for species in bootstrap.nominal.species:
            name = f"{self.prefix}{species}"
            added[name] = bootstrap.nominal.weights(table, species)
            added |= {f"{name}_{other}": fit.weights(table, species) for other, fit in others.items()}
            if bootstrap.n:
                added[f"{name}_replica"] = bootstrap.weights(table, key, species)
        return added

    def _check_names(self, source: WeightedInput, names: list[str]) -> None:
        if clash := set(names) & set(source.request.branches):
            found = sorted(clash)[0]
            raise ConfigError(f"{source.sources[0]}: has a branch {found} already; expected an input without weights")

    def _finish(
        self, writer: TreeWriter, source: WeightedInput, bootstrap: Replicas, sums: dict[str, NDArray[np.float64]]
    ) -> None:
        replicas = {
            "n": bootstrap.n,
            "indices": [1, bootstrap.n],
            "seed": bootstrap.seed,
            "refit": bootstrap.refit,
            "block": source.columns.block,
        }
        replicas["n_eff"] = {name: (total**2 / squares).tolist() for name, (total, squares) in sums.items()}
        content = self.content | {"replicas": replicas}
        writer.finish({self.kind: content, "files": source.names()})
        with replacing(self.path.with_suffix(".json"), overwrite=self.overwrite) as beside:
            beside.write_text(json.dumps(content, indent=1, default=_plain))
        for path, figure in self.pictures.items():
            with replacing(path, overwrite=self.overwrite) as beside:
                figure.savefig(beside, format="png", dpi=120)


def _numeric(sources: list[RootFiles]) -> tuple[list[str], list[str]]:
    """Branches that are one number per event in all samples, and the others."""
    numeric = [source.numeric_branch_names() for source in sources]
    every = dict.fromkeys(name for source in sources for name in source.branch_names())
    kept = [name for name in every if all(name in names for names in numeric)]
    return kept, [name for name in every if name not in kept]


def _plain(value: NDArray[Any] | np.generic) -> Any:
    return value.tolist()
